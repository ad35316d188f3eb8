"""A window slides over the blocks: most of them lie on disk, and are read just before they are needed.

Paper   https://arxiv.org/abs/2410.00531 (TPI-LLM), https://arxiv.org/abs/2312.11514 (LLM in a flash)
Idea    As many blocks as fit stay in memory. The others, packed as the kernels want them, are read from a file into two
        buffers, one for attention and one for the MLP, while the half before them computes; after the last block comes
        the first. A step reads what does not fit, once, in large pieces past the page cache. Plain paging drops
        each page just before it is needed again, and so reads everything.
Trades  A step takes at least as long as the disk needs. Loading writes the file once: it has no name, and is gone with
        the process. Many rows per step pay: drafts, or batches.
Deviates  TPI-LLM drops each block when it is through; here those that fit stay. LLM in a flash reads the neurons
        that a predictor names, which needs models whose neurons are mostly zero.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.config import parse_size
from headrace.errors import ConfigError, ModelError
from headrace.slots import Card
from headrace.weight.memory import PAGE, Take, huge
from headrace.weight.ring import Ring
from headrace.weight.scratch import Scratch, Stored

_log = logging.getLogger(__name__)
_ALIGN = 64


@dataclass(frozen=True, kw_only=True)
class Window:
    """How much stays in memory."""

    card: ClassVar[Card] = Card(
        slot="weight-tier",
        exact="bits",
        paper="https://arxiv.org/abs/2410.00531",
        needs=(("cpu", "its buffers are main memory"),),
    )
    bytes: str
    """Memory that the blocks' matrices may take, such as 700M; embedding and head come on top."""
    folder: str = "/var/tmp"
    """Where the file lies: on a disk, not in a file system that is memory itself."""

    def __post_init__(self) -> None:
        parse_size("--weight-tier window:bytes", self.bytes)

    def start(self, sizes: Sequence[Sequence[int]], device: torch.device) -> Windowed:
        budget = parse_size("--weight-tier window:bytes", self.bytes)
        # a matrix takes its memory in two parts at most, each aligned; the last page is whole
        costs = [-(-sum(size + 2 * _ALIGN for size in half) // PAGE) * PAGE for half in sizes]
        stay = choose(costs, budget)
        return Windowed(costs, stay, budget, self.folder)


def choose(costs: Sequence[int], budget: int) -> frozenset[int]:
    """The halves that stay in memory, of halves that take so much, beside one buffer for attention and one for MLPs.

    Whole blocks, spread evenly so that reading goes on while they compute; then what else fits. Raises ConfigError if
    nothing fits, or everything does.
    """
    total, blocks = sum(costs), len(costs) // 2
    if total <= budget:
        raise ConfigError(
            f"--weight-tier window:bytes={budget} holds all blocks, which take {total}: leave --weight-tier out"
        )
    for count in range(blocks - 1, -1, -1):
        chosen = {(2 * i + 1) * blocks // (2 * count) for i in range(count)}
        stay = {half for half in range(len(costs)) if half // 2 in chosen}
        if _memory(costs, stay) <= budget:
            break
    else:
        raise ConfigError(
            f"--weight-tier window:bytes={budget} is less than one block: give it {_memory(costs, set())} or more"
        )
    for half in sorted(set(range(len(costs))) - stay, key=lambda half: -costs[half]):
        if _memory(costs, stay | {half}) <= budget:
            stay.add(half)
    return frozenset(stay)


def _memory(costs: Sequence[int], stay: set[int]) -> int:
    """What stays, and the buffers."""
    rest = [half for half in range(len(costs)) if half not in stay]
    buffers = (max((costs[half] for half in rest if half % 2 == kind), default=0) for kind in (0, 1))
    return sum(costs[half] for half in stay) + sum(buffers)


class Area:
    """A run of memory, handed out from its beginning."""

    def __init__(self, expected: int) -> None:
        """expected: bytes that will be taken. Some formats only guess: three times as many may be."""
        self._memory, self._used = huge(expected, spare=2 * expected), 0

    def take(self, num_bytes: int) -> Tensor:
        start = -(-self._used // _ALIGN) * _ALIGN
        self._used = start + num_bytes
        if self._used > len(self._memory):
            raise ModelError(
                "a block's weights take three times what their format says: use another --weights"
            )
        return self._memory[start : self._used]

    def emptied(self) -> Tensor:
        """All that was taken, in whole pages; it may be taken anew."""
        used, self._used = self._used, 0
        return self._memory[: -(-used // PAGE) * PAGE]


class Windowed:
    """See headrace.weight.store.Store."""

    def __init__(self, costs: Sequence[int], stay: frozenset[int], budget: int, folder: str) -> None:
        """costs: bytes of each half, more or less. Raises ModelError if there is no place for them."""
        self._seats = {half: half % 2 for half in range(len(costs)) if half not in stay}
        """Which buffer the others share: that of attention, 0, or that of MLPs, 1."""
        self._areas = {half: Area(costs[half]) for half in stay}
        largest = {seat: max(costs[half] for half in self._with(seat)) for seat in set(self._seats.values())}
        self._buffers = {seat: Area(cost) for seat, cost in largest.items()}
        self._open: dict[int, int] = {}
        """Whose matrices are being packed in each buffer."""
        self._used: dict[int | None, int] = dict.fromkeys((None, *self._buffers), 0)
        """Bytes of each buffer, and of what stays under None."""
        self._left, self._budget = len(costs), budget
        self.per_pass = sum(costs[half] for half in self._seats)
        """Bytes that a pass reads."""
        self.outside = self.per_pass - sum(largest.values())
        self._scratch = Scratch(folder, self.per_pass)
        self._stored: dict[int, tuple[Stored, Tensor]] = {}
        self._ring: Ring | None = None
        _log.info(
            "weights: %d of %d halves of blocks stay in memory; a pass reads the others, %.0f MiB, from %s",
            len(stay), len(costs), self.per_pass / 2**20, folder,
        )  # fmt: skip

    def taker(self, half: int) -> Take:
        seat = self._seats.get(half)
        if seat is None:
            return self._areas[half].take
        assert self._open.setdefault(seat, half) == half, "halves are packed one after the other"
        return self._buffers[seat].take

    def seal(self, half: int) -> None:
        seat = self._seats.get(half)
        if seat is None:
            self._used[None] += len(self._areas[half].emptied())
        else:
            data = self._buffers[seat].emptied()
            del self._open[seat]
            self._stored[half] = self._scratch.write(data), data
            self._used[seat] = max(self._used[seat], len(data))
        used = sum(self._used.values())
        if used > self._budget:
            raise ModelError(
                f"the blocks' weights take more than their format says: --weight-tier window:bytes={self._budget} is "
                f"too little, {used} so far; raise it a little"
            )
        self._left -= 1
        if not self._left:
            scratch, stored = self._scratch, self._stored  # the thread must not keep this object
            self._ring = Ring(self._seats, lambda half: scratch.read(*stored[half]))

    def need(self, half: int | None) -> None:
        assert self._ring is not None, "not every half has been sealed"
        self._ring.need(half)

    def _with(self, seat: int) -> list[int]:
        return [half for half, other in self._seats.items() if other == seat]
