"""Keeps pages that leave the pool in main memory, up to a bound.

Paper   https://arxiv.org/abs/2312.07104 (SGLang); https://arxiv.org/abs/2403.19708 (AttentionStore: a hierarchy of
        caches behind the GPU's)
Idea    Copying a page back takes a thousandth of the time that computing it took. A pool on a GPU is small, main memory
        is not: what the prefix cache gives up, and what paused sequences had, waits there.
Trades  Memory. On a CPU the pool lies in main memory already, and a larger pool does the same without copying: a bound
        of its own helps where the pool's decides how many sequences run at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headrace.config import parse_size
from headrace.kv.shelf import NEEDS
from headrace.slots import Card
from headrace.weight.memory import huge


@dataclass(frozen=True, kw_only=True)
class Host:
    """An arena in main memory."""

    card: ClassVar[Card] = Card(
        slot="kv-tier", exact="bits", paper="https://arxiv.org/abs/2403.19708", needs=NEEDS, recordable=True
    )
    size: str = "1GiB"
    """Room, such as 512MiB."""

    def __post_init__(self) -> None:
        parse_size("kv-tier=host:size", self.size)

    @property
    def num_bytes(self) -> int:
        return parse_size("kv-tier=host:size", self.size)

    @property
    def memory_bytes(self) -> int:
        return self.num_bytes

    @property
    def behind(self) -> Host:
        return self

    @property
    def under(self) -> None:
        return None

    def start(self, slots: int, page_bytes: int) -> _Live:
        return _Live(slots, page_bytes)


class _Live:
    """See LiveTier."""

    takes = True

    def __init__(self, slots: int, page_bytes: int) -> None:
        self._arena_SX = huge(slots * page_bytes).view(slots, page_bytes)  # exists as it is written
        self.written = self.read = 0

    def put(self, slot: int, page_X: Tensor) -> None:
        self._arena_SX[slot].copy_(page_X)
        self.written += len(page_X)

    def get(self, slots: Sequence[int], pages: Sequence[Tensor]) -> list[bool]:
        for slot, page_X in zip(slots, pages, strict=True):
            page_X.copy_(self._arena_SX[slot])
            self.read += len(page_X)
        return [True] * len(slots)

    def ahead(self, slots: Sequence[int]) -> None:
        """Nothing is nearer than this."""

    def close(self) -> None:
        self._arena_SX = self._arena_SX[:0].clone()
