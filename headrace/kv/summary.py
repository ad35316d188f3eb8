"""Summaries: what stays of the tokens that leave a group's window, in records of a fixed size.

    positions   [ sink ][ ......... left ......... ][ ....... window ....... ]        blocks of the summary's size
    boundary b                                      b - window + block       b        block [b - block, b) is whole
    record      of b = merge(record of b - block, the block that now leaves the window)

A query in the block that begins at b reads the sink, the window from b - window + block on, and the record of b.
Records lie in pages, in a group of their own (headrace/kv/groups.py): one for each block, made when the block is whole,
and let go of when no query reads it again. So forks share them, pauses and the prefix tree keep them, and a record that
was made of drafted tokens is made again; what it holds is a matter of the tokens before b alone.

Two kinds of technique use it: a layout whose groups come with a summary, and a keeper that gives its groups one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import torch

from headrace.errors import ConfigError
from headrace.kv.groups import ALIGN, GroupSpec, Member
from headrace.types import Fold, Reads

if TYPE_CHECKING:
    from torch import Tensor

    from headrace.kernels.attention import Queries, State

WORD = 8
"""A layer's part of a page starts at a multiple of so many bytes."""
ReadTokens = Callable[[int, "Tensor", int], tuple["Tensor", "Tensor"]]
"""(layer, pages, length) -> keys and values of the first tokens in these pages, as LiveCodec.read gives them."""


class LiveSummary(Protocol):
    """A summary at work on one cache group. Holds nothing itself: records lie in `arena_PX`."""

    def merge(self, arena_PX: Tensor, layer: int, fold: Fold, read: ReadTokens) -> None:
        """Makes the record of fold.end, in the pages fold.after_B. Mutates nothing else.

        The same bits whatever else is in the batch: only from the record before, and the window's keys and values.
        """

    def attend(self, arena_PX: Tensor, layer: int, queries: Queries, reads: Reads) -> State:
        """Attention of every row to the record that it reads: each run is one, at run.start the block it was made
        after. Rows without one: out = 0, lse = -inf."""


class Summary(Protocol):
    """How tokens that leave a window are merged. A frozen dataclass: part of a GroupSpec."""

    @property
    def block(self) -> int:
        """Tokens that leave at once: a power of two, up to 512. Window and sink are multiples."""

    def record_bytes(self, member: Member, dtype: torch.dtype) -> int:
        """Of one layer's part of a record, for a model of this dtype. Pure."""

    def start(self, group: GroupSpec, records: Records, dtype: torch.dtype) -> LiveSummary:
        """The live summary of one group, whose records are kept as `records` says."""


class Records:
    """Where records lie: in `pages` pages each, every page with an equal part of every layer's bytes."""

    def __init__(self, sizes: Mapping[int, int], pages: int) -> None:
        """sizes: bytes of each layer's part."""
        self.pages, self._sizes = pages, sizes
        self._places: dict[int, slice] = {}
        at = 0
        for layer, size in sizes.items():
            share = -(-size // pages // WORD) * WORD
            self._places[layer] = slice(at, at + share)
            at += share
        self.page_bytes = -(-at // ALIGN) * ALIGN

    def read(self, arena_PX: Tensor, layer: int, pages_B: Tensor) -> Tensor:
        """uint8 [records, bytes]: a layer's parts of the records in these pages, one record after the other."""
        found_BX = arena_PX[pages_B, self._places[layer]]
        return found_BX.view(len(pages_B) // self.pages, -1)[:, : self._sizes[layer]]

    def write(self, arena_PX: Tensor, layer: int, pages_B: Tensor, record_X: Tensor) -> None:
        """One record."""
        place = self._places[layer]
        padded_X = record_X.new_zeros(self.pages * (place.stop - place.start))
        padded_X[: len(record_X)] = record_X
        arena_PX[pages_B, place] = padded_X.view(self.pages, -1)


def page_bytes(group: GroupSpec, pages: int, dtype: torch.dtype) -> int:
    """Of each of the pages that a record of this group lies in."""
    return _records(group, pages, dtype).page_bytes


def start_summary(group: GroupSpec, pages: int, dtype: torch.dtype) -> LiveSummary:
    """The live summary of a group of records."""
    assert group.summary is not None
    return group.summary.start(group, _records(group, pages, dtype), dtype)


def _records(group: GroupSpec, pages: int, dtype: torch.dtype) -> Records:
    assert group.summary is not None
    return Records({m.layer: group.summary.record_bytes(m, dtype) for m in group.members}, pages)


def check_window(group: GroupSpec, codec_block: int | None) -> None:
    """Raises ConfigError where a group's window cannot move by the blocks of its summary."""
    assert group.summary is not None and group.window is not None
    block = group.summary.block
    if group.window % block or group.sink % block:
        raise ConfigError(
            f"a window of {group.window} and a sink of {group.sink} are not whole blocks of the {block} tokens that "
            f"are summarised at once: use {-(-group.window // block) * block} and {-(-group.sink // block) * block}"
        )
    least = block + (codec_block or 1) - 1
    if group.window < least:
        raise ConfigError(
            f"a window of {group.window} tokens is left before the KV codec has stored them: use window="
            f"{-(-least // block) * block} or more"
        )


def folds(
    group: GroupSpec, window: tuple[list[int], int], records: tuple[list[int], int], start: int, stop: int
) -> list[tuple[int, list[int], list[int], list[int]]]:
    """Of the boundaries in (start, stop] at which something leaves: (end, pages of the window before it, pages of the
    record before, of the one after).

    window, records: block table, and tokens per page, of the tokens' group and of the records'.
    """
    assert group.window is not None
    (tokens, size), (table, share) = window, records
    found = []
    for end in range(start // group.block * group.block + group.block, stop + 1, group.block):
        if not group.left(end):
            continue
        before = table[(end - 2 * group.block) // share : (end - group.block) // share]
        after = table[(end - group.block) // share : end // share]
        held = tokens[(end - group.window) // size : end // size]
        found.append((end, held, before if group.left(end - group.block) else [], after))
    return found
