"""Cache groups: which (layer, kv head) pairs share a block table, and how many tokens a page of each group holds.

Every page of every group has the same number of bytes, so one free list serves all groups; a group whose entries are
smaller keeps more tokens in a page. Position of a token, slot where it is stored and number of stored tokens are three
different numbers, per group.

A codec that stores whole blocks of tokens splits a group in two, with the same members and a block table each:

    blocks   [ block 0 ][ block 1 ]                      as the codec stores them: written once, never again
    rest                            [ 0 ... tokens ]     of the block that is not whole yet, as the model has them

A query at p reads blocks up to p // block, and the rest of its own block. Which of its keys are rounded is so a matter
of its position alone, and not of how its prompt was cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from headrace.errors import ConfigError

Interval = tuple[int, int]
"""Positions [start, stop)."""
MAX_GRANULE = 512
"""Most tokens of the smallest run that fills whole pages of every group (one node of the prefix tree)."""


@dataclass(frozen=True)
class Member:
    """One layer's part in a group."""

    layer: int
    kv_heads: tuple[int, ...]
    """Which kv heads of the layer, ascending."""
    head_size: int


@dataclass(frozen=True)
class GroupSpec:
    """(layer, kv head) pairs that share a block table."""

    name: str
    members: tuple[Member, ...]
    window: int | None = None
    """A query at p reads (p - window, p]; None reads everything."""
    sink: int = 0
    """And, beside a window, [0, sink)."""
    holds: Literal["all", "blocks", "rest"] = "all"
    """Every token; or only whole blocks; or only those of the block that is not whole yet."""
    block: int = 1
    """Tokens of a block."""

    def split(self, block: int) -> tuple[GroupSpec, GroupSpec]:
        """Its blocks, and the rest."""
        return replace(self, holds="blocks", block=block), replace(self, holds="rest", block=block)

    def stored(self, computed: int) -> int:
        """Where what is stored ends when the positions before `computed` are: at most there."""
        return computed // self.block * self.block if self.holds == "blocks" else computed

    def readable(self, first: int, end: int) -> tuple[Interval, ...]:
        """What is here of that which a query at `first` sees, or one up to `end` that reads the same blocks."""
        start = first // self.block * self.block
        seen = self._seen(0 if self.window is None else first - self.window + 1, end)
        low, high = (0, start) if self.holds == "blocks" else (start if self.holds == "rest" else 0, end)
        return _clip(seen, low, high)

    def kept(self, computed: int) -> tuple[Interval, ...]:
        """What may be read again, or is still to be stored in a block. One token more than the next query reads: a fork
        of the sequence runs its newest prompt token again."""
        if self.holds == "rest":
            return ((max(0, computed - 1) // self.block * self.block, computed),)
        return self._seen(0 if self.window is None else max(0, computed - self.window), computed)

    def _seen(self, low: int, end: int) -> tuple[Interval, ...]:
        """[0, sink) and [low, end), as one where they touch; low may be below 0."""
        return ((0, end),) if low <= self.sink else ((0, self.sink), (low, end))

    @property
    def behind(self) -> int | None:
        """Most positions that stay behind a query, beside the sink; None for all."""
        return self.block if self.holds == "rest" else self.window

    @property
    def elements_per_token(self) -> int:
        """Numbers stored per token: keys and values of every member."""
        return sum(2 * len(m.kv_heads) * m.head_size for m in self.members)


def _clip(intervals: tuple[Interval, ...], first: int, end: int) -> tuple[Interval, ...]:
    """The parts of them within [first, end)."""
    cut = ((max(a, first), min(b, end)) for a, b in intervals)
    return tuple((a, b) for a, b in cut if a < b)


@dataclass(frozen=True)
class PageSizes:
    """The outcome of size_pages."""

    page_bytes: int
    tokens: tuple[int, ...]
    """Tokens per page, per group."""
    granule: int
    """Tokens that fill whole pages of every group."""


def size_pages(
    groups: Sequence[GroupSpec], base: int, page_bytes: Callable[[GroupSpec, int], int]
) -> PageSizes:
    """Pages of equal bytes: `base` tokens, or one block, for the group with the largest entries, multiples of that for
    the others. Raises ConfigError where blocks cannot be cut into pages.

    page_bytes(group, tokens): what the codec needs for that many tokens of that group.
    """
    units = [group.block if group.holds == "blocks" else base for group in groups]
    for group in groups:
        if group.holds == "rest" and group.block % base:
            raise ConfigError(
                f"page_tokens={base} does not divide the {group.block} tokens that the KV codec stores at once: use "
                f"{math.gcd(base, group.block)}"
            )
    size = max(page_bytes(group, unit) for group, unit in zip(groups, units, strict=True))
    tokens = [_most(group, unit, size, page_bytes) for group, unit in zip(groups, units, strict=True)]
    if math.lcm(*tokens) > MAX_GRANULE:  # powers of two keep the granule at the largest page
        tokens = [unit << ((t // unit).bit_length() - 1) for t, unit in zip(tokens, units, strict=True)]
    return PageSizes(size, tuple(tokens), math.lcm(*tokens))


def _most(group: GroupSpec, unit: int, size: int, page_bytes: Callable[[GroupSpec, int], int]) -> int:
    """The most tokens, a multiple of `unit`, that a page of this size holds: of the rest, a part of a block."""
    count = 1
    while (count + 1) * unit <= MAX_GRANULE and page_bytes(group, (count + 1) * unit) <= size:
        count += 1
    if group.holds == "rest":
        count = max(c for c in range(1, count + 1) if group.block % (c * unit) == 0)
    return count * unit
