"""What low-rank adapters do to one product, whatever their folders look like: rows of all of them in one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from headrace.kernels.before import Before
from headrace.kernels.lora import Group, LoraWeight, lora


class LowRank:
    """An Update (headrace/weight/adapters): one adapter's part in one product."""

    __slots__ = ("nbytes", "weight")

    def __init__(self, weight: LoraWeight) -> None:
        self.weight, self.nbytes = weight, weight.nbytes

    @staticmethod
    def add(out_TO: Tensor, x: Tensor, before: Before, updates: Sequence[tuple[Tensor, LowRank]]) -> None:
        """See the contract."""
        lora(out_TO, x, [Group(rows_A, update.weight) for rows_A, update in updates], before)
