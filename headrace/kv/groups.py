"""Cache groups: which (layer, kv head) pairs share a block table, and how many tokens a page of each group holds.

Every page of every group has the same number of bytes, so one free list serves all groups; a group whose entries are
smaller keeps more tokens in a page. Position of a token, slot where it is stored and number of stored tokens are three
different numbers, per group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

    @property
    def elements_per_token(self) -> int:
        """Numbers stored per token: keys and values of every member."""
        return sum(2 * len(m.kv_heads) * m.head_size for m in self.members)


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
    """Pages of equal bytes: `base` tokens for the group with the largest entries, multiples of `base` for the others.

    page_bytes(group, tokens): what the codec needs for that many tokens of that group.
    """
    size = max(page_bytes(group, base) for group in groups)
    multiples = [_most_bases(group, base, size, page_bytes) for group in groups]
    if math.lcm(*multiples) * base > MAX_GRANULE:  # powers of two keep the granule at the largest page
        multiples = [1 << (m.bit_length() - 1) for m in multiples]
    tokens = tuple(m * base for m in multiples)
    return PageSizes(size, tokens, math.lcm(*tokens))


def _most_bases(group: GroupSpec, base: int, size: int, page_bytes: Callable[[GroupSpec, int], int]) -> int:
    count = 1
    while (count + 1) * base <= MAX_GRANULE and page_bytes(group, (count + 1) * base) <= size:
        count += 1
    return count
