"""Cache groups: which (layer, kv head) pairs share a block table, and how many tokens a page of each group holds.

Every page of every group has the same number of bytes, so one free list serves all groups; a group whose entries are
smaller keeps more tokens in a page. Position of a token, slot where it is stored and number of stored tokens are three
different numbers, per group.

A codec that stores whole blocks of tokens splits a group in two, with the same members and a block table each:

    blocks   [ block 0 ][ block 1 ]                      as the codec stores them: written once, never again
    rest                            [ 0 ... tokens ]     of the block that is not whole yet, as the model has them

A query at p reads blocks up to p // block, and the rest of its own block. Which of its keys are rounded is so a matter
of its position alone, and not of how its prompt was cut.

A group whose tokens are summarised as they leave its window has a third part:

    summary  [ record 0 ][ record 1 ]                    record i: all that has left the window when block i is whole

Its window moves by whole blocks of the summary, so that each token is read as it is, or is part of the record of the
block before the query's own, and never both: again a matter of the position alone. See kv/summary.py. Where a summary
goes by what queries attend to, those of the unfinished block are stored beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.kv.summary import Summary

Interval = tuple[int, int]
"""Positions [start, stop)."""
ALIGN = 64
"""Pages start on cache lines."""
MAX_GRANULE = 512
"""Most tokens of the smallest run that fills whole pages of every group (one node of the prefix tree)."""


@dataclass(frozen=True)
class Member:
    """One layer's part in a group."""

    layer: int
    kv_heads: tuple[int, ...]
    """Which kv heads of the layer, ascending."""
    head_size: int
    queries: int = 1
    """Query heads of each kv head."""


@dataclass(frozen=True)
class GroupSpec:
    """(layer, kv head) pairs that share a block table."""

    name: str
    members: tuple[Member, ...]
    window: int | None = None
    """A query at p reads (p - window, p]; None reads everything."""
    sink: int = 0
    """And, beside a window, [0, sink)."""
    holds: Literal["all", "blocks", "rest", "summary", "queries"] = "all"
    """Every token; or only whole blocks; or only those of the block that is not whole yet; or records of what left; or
    the queries of the block that is not whole yet."""
    block: int = 1
    """Tokens of a block."""
    summary: Summary | None = None
    """What becomes of tokens that leave the window: None is nothing. Window and sink are whole blocks of it."""
    unit: int = 0
    """Not 0: each kv head's keys and values lie together, in a strip of the page of whole units of so many bytes."""

    def split(self, block: int) -> tuple[GroupSpec, GroupSpec]:
        """Its blocks, and the rest."""
        return replace(self, holds="blocks", block=block), replace(self, holds="rest", block=block)

    def records(self) -> GroupSpec:
        """Of a group with a summary: the group of its records."""
        assert self.summary is not None
        return replace(self, holds="summary", block=self.summary.block)

    def asked(self) -> GroupSpec:
        """Of a group with a summary: the group of its queries."""
        assert self.summary is not None
        return replace(self, holds="queries", block=self.summary.block)

    @property
    def passing(self) -> bool:
        """Whether only the block that is not whole yet is here."""
        return self.holds in ("rest", "queries")

    def stored(self, computed: int) -> int:
        """Where what is stored ends when the positions before `computed` are: at most there."""
        return computed // self.block * self.block if self.holds in ("blocks", "summary") else computed

    def alike(self, first: int) -> int | None:
        """Where the positions from `first` on end that read the same blocks and records; None if all do."""
        if self.holds == "all" and self.summary is None:
            return None
        blocks = [self.block] if self.holds != "all" else []
        blocks += [] if self.summary is None else [self.summary.block]
        return min(((first // block + 1) * block for block in blocks), default=None)

    def left(self, position: int) -> int:
        """How many tokens have left the window, for a query here: those that its record is made of."""
        assert self.window is not None
        return max(0, self._first(position) - self.sink)

    def readable(self, first: int, end: int) -> tuple[Interval, ...]:
        """What is here of that which a query at `first` sees, or one up to `end` that reads the same blocks. Of a
        summary: the block whose record it is."""
        start = first // self.block * self.block
        if self.holds == "summary":
            return ((start - self.block, start),) if self.left(first) else ()
        if self.holds == "queries":
            return ()
        seen = self._seen(self._first(first), end)
        if self.holds == "all":
            return seen
        low, high = (0, start) if self.holds == "blocks" else (start if self.holds == "rest" else 0, end)
        return _clip(seen, low, high)

    def kept(self, computed: int) -> tuple[Interval, ...]:
        """What may be read again, or is still to be stored in a block. One token more than the next query reads: a fork
        of the sequence runs its newest prompt token again."""
        if self.passing:
            return ((max(0, computed - 1) // self.block * self.block, computed),)
        if self.holds == "summary":
            return ((max(0, (computed - 1) // self.block - 1) * self.block, computed),)
        return self._seen(0 if self.window is None else max(0, computed - self.window), computed)

    def _first(self, position: int) -> int:
        """First position that a query sees, beside the sink; may be below 0."""
        if self.window is None:
            return 0
        if self.summary is None:
            return position - self.window + 1
        return (position // self.summary.block + 1) * self.summary.block - self.window

    def _seen(self, low: int, end: int) -> tuple[Interval, ...]:
        """[0, sink) and [low, end), as one where they touch; low may be below 0."""
        return ((0, end),) if low <= self.sink else ((0, self.sink), (low, end))

    @property
    def behind(self) -> int | None:
        """Most positions that stay behind a query, beside the sink; None for all."""
        if self.holds == "summary":
            return 2 * self.block
        return self.block if self.passing else self.window

    @property
    def parts(self) -> int | None:
        """Tokens of which a page has to hold a whole part, or None: reading starts and ends there."""
        if self.passing:
            return self.block
        return None if self.summary is None else self.summary.block

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

    page_bytes(group, tokens): what the codec needs for that many tokens of that group; of records, what each page of
    one needs if its block's tokens are divided among pages by so many.
    """
    units = [{"blocks": group.block, "summary": 1, "queries": 1}.get(group.holds, base) for group in groups]
    for group, unit in zip(groups, units, strict=True):
        _check_parts(group, unit)
    size = max(page_bytes(group, unit) for group, unit in zip(groups, units, strict=True))
    tokens = [_most(group, unit, size, page_bytes) for group, unit in zip(groups, units, strict=True)]
    blocks = [group.block for group in groups if group.holds == "summary"]
    if math.lcm(*tokens, *blocks) > MAX_GRANULE:  # powers of two keep the granule at the largest page
        tokens = [
            t if group.holds == "summary" else unit << ((t // unit).bit_length() - 1)
            for group, t, unit in zip(groups, tokens, units, strict=True)
        ]
    return PageSizes(size, tuple(tokens), math.lcm(*tokens, *blocks))


def _check_parts(group: GroupSpec, unit: int) -> None:
    """Raises ConfigError if whole pages do not make up a block."""
    if group.parts is None or group.parts % unit == 0:
        return
    if group.holds == "blocks":
        raise ConfigError(
            f"the KV codec stores {unit} tokens at once, and {group.parts} are summarised at once: use block={unit}"
        )
    what = "that the KV codec stores at once" if group.holds == "rest" else "that are summarised at once"
    raise ConfigError(
        f"page_tokens={unit} does not divide the {group.parts} tokens {what}: use {math.gcd(unit, group.parts)}"
    )


def _most(group: GroupSpec, unit: int, size: int, page_bytes: Callable[[GroupSpec, int], int]) -> int:
    """The most tokens, a multiple of `unit`, that a page of this size holds: where blocks are read, a part of one."""
    if group.holds == "summary":
        parts = (group.block // n for n in range(1, group.block + 1) if group.block % n == 0)
        return next(tokens for tokens in parts if page_bytes(group, tokens) <= size)
    count = 1
    while (count + 1) * unit <= MAX_GRANULE and page_bytes(group, (count + 1) * unit) <= size:
        count += 1
    if group.parts is not None:
        count = max(c for c in range(1, count + 1) if group.parts % (c * unit) == 0)
    return count * unit
