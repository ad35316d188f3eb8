"""Where the matrices of a decoder's blocks lie: what tiers make, assemblies fill, and a forward pass asks.

A *half* of a block is its attention or its MLP: half 2 i is the attention of block i, half 2 i + 1 its MLP.
"""

from __future__ import annotations

from typing import Protocol

import torch

from headrace.weight.memory import Take, taker


class Store(Protocol):
    """The matrices of one model, half by half."""

    outside: int
    """Bytes of them that are not in memory at one time."""

    def taker(self, half: int) -> Take:
        """Memory for this half's matrices. Stays where it is: what is made of it may keep its address."""
        ...

    def seal(self, half: int) -> None:
        """This half's memory is written, and not written again. Raises ModelError if it cannot be kept."""
        ...

    def need(self, half: int | None) -> None:
        """From now on this half's matrices are in their memory, until the next call; None: no half's need be.

        Halves mostly come in order, pass after pass, some left out; any order is right. Raises ModelError if they
        cannot be fetched; a later call tries again.
        """
        ...


class InMemory:
    """All of it, all the time."""

    outside = 0

    def __init__(self, device: torch.device) -> None:
        self._taker = taker(device)

    def taker(self, half: int) -> Take:
        return self._taker

    def seal(self, half: int) -> None:
        pass

    def need(self, half: int | None) -> None:
        pass


def half_of(name: str) -> int | None:
    """blocks.3.mlp.down.weight -> 7; None for what is in no block, and for a block's norms and biases."""
    path = name.split(".")
    if path[0] != "blocks" or len(path) < 5 or path[-1] != "weight" or path[-2].endswith("norm"):
        return None
    return 2 * int(path[1]) + (path[2] == "mlp")
