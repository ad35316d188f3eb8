"""Slot `weight-tier`: where the blocks' matrices lie while the engine runs.

Add one: a file here with a frozen dataclass that has `card` and `start`, and a line in the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from headrace.slots import Card, Slot

if TYPE_CHECKING:
    import torch

    from headrace.weight.store import Store


class Tier(Protocol):
    """Places matrices. Embedding, norms, biases and head stay in memory whatever it does."""

    card: ClassVar[Card]

    def start(self, sizes: Sequence[Sequence[int]], device: torch.device) -> Store:
        """A place for the matrices of one model, before any of them is there.

        sizes: bytes of each matrix of block 0's attention, of block 0's MLP, of block 1's attention, ..., as their
        formats say. Raises ConfigError if the options do not suit them.
        """
        ...


SLOT = Slot(
    name="weight-tier",
    asks="where the blocks' weights lie",
    index={
        "memory": "headrace.weight.tiers.memory:Memory",
        "window": "headrace.weight.tiers.window:Window",
    },
    default="memory",
)
