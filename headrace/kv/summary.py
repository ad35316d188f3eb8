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

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from headrace.errors import ConfigError
from headrace.kernels.attention import Queries
from headrace.kv.groups import ALIGN, GroupSpec, Member
from headrace.types import Fold, Reads

if TYPE_CHECKING:
    from torch import Tensor

    from headrace.kernels.attention import State
    from headrace.kv.tables import BlockTables

WORD = 8
"""A layer's part of a page starts at a multiple of so many bytes."""
ReadTokens = Callable[[int, "Tensor", int, int], tuple["Tensor", "Tensor"]]
"""(layer, pages, length, position of the first) -> keys and values of the first tokens in these pages, as
LiveCodec.read gives them."""


class LiveSummary(Protocol):
    """A summary at work on one cache group. Holds nothing itself: records lie in `arena_PX`."""

    def merge(
        self, arena_PX: Tensor, layer: int, fold: Fold, read: ReadTokens, queries: Queries | None
    ) -> None:
        """Makes the record of fold.end, in the pages fold.after_B. Mutates nothing else.

        From the record before, the keys and values of sink and window, and the queries of the block that has become
        whole, if the summary asks for them.
        """

    def attend(self, arena_PX: Tensor, layer: int, queries: Queries, reads: Reads) -> State:
        """Attention of every row to the record that it reads: each run is one, at run.start the block it was made
        after. Rows without one: out = 0, lse = -inf."""


class Summary(Protocol):
    """How tokens that leave a window are merged. A frozen dataclass: part of a GroupSpec."""

    @property
    def block(self) -> int:
        """Tokens that leave at once: a power of two, up to 512. Window and sink are multiples."""

    @property
    def asks(self) -> bool:
        """Whether it goes by what queries attend to: they are stored until their block is whole."""

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


class AskedQueries:
    """Where queries lie in a page: [layer][token][query head][H], in the model's dtype."""

    def __init__(self, group: GroupSpec, page_tokens: int, dtype: torch.dtype) -> None:
        self._page_tokens, self._dtype = page_tokens, dtype
        self._places: dict[int, tuple[slice, tuple[int, int]]] = {}
        at = 0
        for member in group.members:
            shape = (len(member.kv_heads) * member.queries, member.head_size)
            size = page_tokens * shape[0] * shape[1] * dtype.itemsize
            self._places[member.layer] = (slice(at, at + size), shape)
            at += -(-size // WORD) * WORD
        self.page_bytes = -(-at // ALIGN) * ALIGN

    def write(self, arena_PX: Tensor, layer: int, q_TNH: Tensor, slots_T: Tensor) -> None:
        """One query per row, at its slot."""
        self._view(arena_PX, layer)[slots_T // self._page_tokens, slots_T % self._page_tokens] = q_TNH

    def read(self, arena_PX: Tensor, layer: int, fold: Fold, scale: float) -> Queries:
        """Those of the block that has become whole."""
        q_TNH = self._view(arena_PX, layer)[fold.queries_B].flatten(0, 1)
        positions_T = torch.arange(fold.end - len(q_TNH), fold.end, device=q_TNH.device)
        return Queries(q_TNH, positions_T, scale, None)

    def _view(self, arena_PX: Tensor, layer: int) -> Tensor:
        place, shape = self._places[layer]
        return arena_PX[:, place].view(self._dtype).unflatten(1, (self._page_tokens, *shape))


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


def check_blocks(block: int, sink: int, window: int) -> None:
    """Raises ValueError for options by which no window can move."""
    if block not in (1 << i for i in range(10)):
        raise ValueError(f"block={block} must be a power of two, up to 512")
    if sink < 0 or window < block or sink % block or window % block:
        raise ValueError(
            f"sink={sink} and window={window} must be multiples of block={block}, and the window at least one block"
        )


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
    tables: BlockTables, index: int, ranges: Sequence[tuple[int, int, int]], device: torch.device
) -> Iterator[Fold]:
    """Of the group number `index`, if it holds records: those that are made when positions are written, sequence by
    sequence: (sequence, first position, position after the last), in whole blocks."""
    if tables.groups[index].holds != "summary":
        return
    for seq, start, stop in ranges:
        for end in range(start + tables.groups[index].block, stop + 1, tables.groups[index].block):
            if tables.groups[index].left(end):
                pages = _pages(tables, index, seq, end)
                yield Fold(end, *(torch.tensor(part, dtype=torch.int64, device=device) for part in pages))


def _pages(tables: BlockTables, index: int, seq: int, end: int) -> tuple[list[int], ...]:
    """What a Fold lists."""
    groups, block = tables.groups, tables.groups[index].block
    group = groups[index]
    assert group.window is not None and group.summary is not None

    def pages(number: int, first: int, last: int) -> list[int]:
        size = tables.sizes.tokens[number]
        return tables.live_pages(seq, number)[first // size : last // size]

    tokens = index - (2 if groups[index - 1].holds == "rest" else 1)
    return (
        pages(tokens, end - group.window, end),
        pages(tokens, 0, group.sink),
        pages(index, end - 2 * block, end - block) if group.left(end - block) else [],
        pages(index, end - block, end),
        pages(index + 1, end - block, end) if group.summary.asks else [],
    )
