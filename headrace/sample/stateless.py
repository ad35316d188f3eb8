"""Base for processors that remember nothing of the sequence: their state only applies."""

from __future__ import annotations

from torch import Tensor


class Stateless:
    """A State without memory. Subclasses write `apply`."""

    def apply(self, logits_V: Tensor) -> Tensor:
        raise NotImplementedError

    def accept(self, token: int, logits_V: Tensor) -> None:
        """Nothing to remember."""

    def fork(self) -> Stateless:
        return self

    def rollback(self, count: int) -> None:
        """Nothing to take back."""
