"""Selection: rows of a batch that read a choice of their pages, and what is chosen for them.

    rows      of the batch, those that select, set after set; the others read what Reads says
    set       rows of one sequence, next to each other, that read the same pages
    mask_GCB  what a selector answers: for each kv head and set, which pages of the set's table are read

A mask becomes runs of pages per kv head, and attention is called once per kv head: what is not chosen is not touched.
A set's pages are one run, as if those before its own positions lay right before them: all of such a page is seen, so
that where it lies is no matter, and the kernel works on whole chunks of tokens.

    table of a set   [ 0 ][ 1 ][ 2 ][ 3 ][ 4 ][ 5 ][own      chosen: 1, 4 and its own
    run                                  [ 1 ][ 4 ][own

Whether a position selects is a matter of its sequence and of the position (Selector.answers, .rows, .kept), never of
how a prompt was cut.

R rows that select, C sets, S tables, B pages of the longest table, W runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from headrace.errors import ConfigError
from headrace.kernels.attention import Queries
from headrace.kernels.best_pages import best_pages
from headrace.kernels.page_dots import PageVectors
from headrace.kv.branches import Stretch
from headrace.kv.groups import GroupSpec
from headrace.kv.paged import Paged
from headrace.kv.resident import Resident
from headrace.types import Reads, Run

if TYPE_CHECKING:
    from headrace.kv.codecs import Codec, LiveCodec
    from headrace.kv.selectors import LiveSelector, Selector


NO_CHOICE = (
    ("kv-codec=kivi", "it chooses pages of tokens, and kivi stores whole blocks apart; use int8"),
    (
        "kv-keeper=streaming",
        "a window is all that is read, and there is nothing to choose from; use one of them",
    ),
)
"""What no selector that chooses runs with: facts and why, for its card."""


class RowSet(NamedTuple):
    """Rows of one sequence that read the same pages."""

    first_row: int
    """Among the rows that select."""
    end_row: int
    table: int
    stop: int
    """Position after that of its last row."""
    pages: int
    """Of its table that it may read."""
    kept: int
    """Of these it reads at least so many."""


@dataclass(frozen=True)
class Selecting:
    """What a batch asks of one cache group's selector. Tensors are int64."""

    page_tokens: int
    whole_P: Tensor
    """Pages that have become whole."""
    sets: tuple[RowSet, ...] = ()
    rows_R: Tensor | None = None
    """The batch's rows that select; None where none does."""
    tables_SB: Tensor | None = None
    """Page numbers of each sequence that has such rows, padded with pages of its own."""
    prompt_ends: tuple[int, ...] = ()
    """Of each of them, the batch's row after that of the last position of its prompt, or of those before it."""
    others_R: Tensor | None = None
    """The batch's other rows; None if there are none."""
    others: Reads | None = None
    """What these read, numbered among themselves."""
    _bounds: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    @cached_property
    def sets_C6(self) -> Tensor:
        """The sets as a tensor."""
        assert self.rows_R is not None
        return torch.tensor(self.sets, dtype=torch.int64, device=self.rows_R.device)

    @cached_property
    def lookup(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tables, and per row that selects its table and how many pages of it may be read."""
        assert self.tables_SB is not None
        lengths_C = self.sets_C6[:, 1] - self.sets_C6[:, 0]
        tables_R, counts_R = (self.sets_C6[:, i].repeat_interleave(lengths_C) for i in (2, 4))
        return self.tables_SB, tables_R, counts_R

    def bounds(self, recent: int) -> tuple[Tensor, Tensor, Tensor]:
        """Per set: the page of the first of its last `recent` tokens, how many pages it may read, and how many of them
        it reads at least."""
        if recent not in self._bounds:
            stop_C, pages_C, kept_C = (self.sets_C6[:, i].contiguous() for i in (3, 4, 5))
            self._bounds[recent] = (stop_C - recent).clamp_min(0) // self.page_tokens, pages_C, kept_C
        return self._bounds[recent]

    def of(self, queries: Queries) -> Queries:
        """Those of the rows that select."""
        if self.others_R is None:
            return queries
        assert self.rows_R is not None
        return _rows(queries, self.rows_R)

    def reads(self, mask_GCB: Tensor) -> list[Reads]:
        """A mask as runs, one list of them per kv head."""
        assert self.tables_SB is not None
        _, c_W, b_W = mask_GCB.nonzero().unbind(1)
        first_C, end_C, table_C, stop_C, pages_C, _ = self.sets_C6.unbind(1)
        count_GC = mask_GCB.sum(-1)
        start_GC = (pages_C - count_GC) * self.page_tokens
        parts = (first_C, end_C, count_GC.cumsum(1) - count_GC, start_GC, stop_C - start_GC)
        runs_GC5 = torch.stack([part.expand_as(count_GC) for part in parts], -1)
        pages = self.tables_SB[table_C[c_W], b_W].split(count_GC.sum(1).tolist())
        return [PackedReads(*own) for own in zip(pages, runs_GC5, strict=True)]


class PackedReads(Reads):
    """Reads whose runs lie in a tensor, and become tuples only where somebody walks them."""

    def __init__(self, pages_B: Tensor, runs_W5: Tensor) -> None:
        super().__init__(pages_B, ())
        self.__dict__["runs_W5"] = runs_W5

    def by_rows(self) -> Iterator[tuple[slice, list[Run]]]:
        runs = tuple(Run(*run) for run in self.runs_W5.tolist())
        return Reads(self.pages_B, runs).by_rows()


def cuts(
    part: Stretch, prompt_len: int, selector: Selector, page_tokens: int
) -> Iterator[tuple[Stretch, int]]:
    """The stretch, cut where it begins or ceases to select, each with the pages that are read at least; 0 is all."""
    low, high = selecting_positions(selector, prompt_len)
    first = dense = part.start
    while first < part.stop:
        stop = min(part.stop, low if first < low else part.stop)
        kept = 0
        if low <= first < high:
            stop = min(part.stop, high, (first // selector.rows + 1) * selector.rows)
            pages = -(-stop // page_tokens)
            kept = selector.kept(pages, page_tokens)
            kept = 0 if kept >= pages else kept
        if kept:
            if dense < first:
                yield _piece(part, dense, first), 0
            yield _piece(part, first, stop), kept
            dense = stop
        first = stop
    if dense < part.stop:
        yield _piece(part, dense, part.stop), 0


def _piece(part: Stretch, start: int, stop: int) -> Stretch:
    return Stretch(part.table, part.row + start - part.start, start, stop)


def selecting_positions(selector: Selector, prompt_len: int) -> tuple[int, int]:
    """[low, high) of the positions that may select."""
    if selector.answers:
        return prompt_len, 1 << 62
    return 0, max(0, prompt_len - selector.spared) // selector.rows * selector.rows


def select_rows(
    stretches: list[Stretch],
    prompt_lens: Mapping[int, int],
    selector: Selector,
    page_tokens: int,
    pages_of: Callable[[int], list[int]],
    reads_of: Callable[[list[Stretch]], Reads],
    whole_P: Tensor,
) -> Selecting:
    """Which of a batch's rows select, in one cache group. prompt_lens, pages_of: of a table's sequence, and what the
    table lists. reads_of: what rows read that do not select."""
    sets: list[RowSet] = []
    rows: list[int] = []
    others: list[int] = []
    dense: list[Stretch] = []
    tables: dict[int, list[int]] = {}
    ends: list[int] = []
    for part in stretches:
        prompt_len = prompt_lens[part.table]
        for piece, kept in cuts(part, prompt_len, selector, page_tokens):
            length = piece.stop - piece.start
            own = range(piece.row, piece.row + length)
            if not kept:
                dense.append(piece._replace(row=len(others)))
                others += own
                continue
            if part.table not in tables:
                tables[part.table] = pages_of(part.table)
                ends.append(part.row + min(prompt_len, part.stop) - part.start)
            pages = -(-piece.stop // page_tokens)
            sets.append(RowSet(len(rows), len(rows) + length, len(tables) - 1, piece.stop, pages, kept))
            rows += own
    if not sets:
        return Selecting(page_tokens, whole_P)
    most = max(map(len, tables.values()))
    padded = [(*pages, *pages[:1] * (most - len(pages))) for pages in tables.values()]
    return Selecting(
        page_tokens,
        whole_P,
        tuple(sets),
        _tensor(rows, whole_P.device),
        _tensor(padded, whole_P.device),
        tuple(ends),
        _tensor(others, whole_P.device) if others else None,
        reads_of(dense) if others else None,
    )


def _tensor(values: object, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


def kept_pages(pages: int, page_tokens: int, share: float, least: int, sink: int, recent: int) -> int:
    """A share of the pages, but no fewer than `least` tokens are, or the first and last ones that are always read."""
    always = -(-sink // page_tokens) + -(-recent // page_tokens) + 1  # the newest page is not full
    return min(pages, max(math.ceil(share * pages), -(-least // page_tokens), always))


def keys_of(codec: LiveCodec, arena_PX: Tensor, layer: int, pages_P: Tensor, page_tokens: int) -> Tensor:
    """Keys of whole pages as they are read, [page, token, kv head, head size]."""
    k_LGH, _ = codec.read(arena_PX, layer, pages_P, len(pages_P) * page_tokens)
    return k_LGH.unflatten(0, (-1, page_tokens))


def stack_vectors(
    group: GroupSpec, at: int, count: int, size: Callable[[int], int]
) -> dict[int, PageVectors]:
    """Layer -> where its vectors are, one layer after the other; size: of a vector, from the head's."""
    stores = {}
    for member in group.members:
        stores[member.layer] = PageVectors(at, len(member.kv_heads), count, size(member.head_size))
        at += stores[member.layer].nbytes
    return stores


def choose(scores_RNB: Tensor, kv_heads: int, selecting: Selecting, sink: int, recent: int) -> Tensor:
    """The mask of each row's best pages, as many as its set keeps; of sets of one row. The first `sink` and the last
    `recent` tokens are always among them: of the newest page nothing is summed up yet."""
    leading = -(-sink // selecting.page_tokens)
    return best_pages(scores_RNB, kv_heads, leading, *selecting.bounds(recent))


class Selection:
    """One cache group's selector between its codec and the batch."""

    def __init__(self, live: LiveSelector, pages: Paged | Resident) -> None:
        self._live, self._pages = live, pages

    def index(self, arena_PX: Tensor, layer: int, selecting: Selecting) -> None:
        """Sums up the pages that have become whole."""
        if len(selecting.whole_P):
            self._live.index(arena_PX, layer, selecting.whole_P, selecting.page_tokens)

    def attend(self, arena_PX: Tensor, layer: int, queries: Queries, selecting: Selecting) -> Tensor | None:
        """Every row's result, [T, N, H]: rows that select over what is chosen for them, the others over everything.
        None if all of them read everything."""
        if selecting.rows_R is None:
            return None
        mask_GCB = self._live.select(arena_PX, layer, queries, selecting)
        if mask_GCB is None:
            return None
        reads = selecting.reads(mask_GCB)
        out_RNH = self._pages.attend_heads(arena_PX, layer, selecting.of(queries), reads)
        if selecting.others_R is None:
            return out_RNH
        assert selecting.others is not None
        out_TNH = torch.empty_like(queries.q_TNH, memory_format=torch.contiguous_format)
        out_TNH[selecting.rows_R] = out_RNH
        others = _rows(queries, selecting.others_R)
        out_TNH[selecting.others_R] = self._pages.attend(arena_PX, layer, others, selecting.others).out_TNH
        return out_TNH


def _rows(queries: Queries, rows_R: Tensor) -> Queries:
    return queries._replace(q_TNH=queries.q_TNH[rows_R], positions_T=queries.positions_T[rows_R])


def begin(
    selector: Selector | None,
    codec: Codec,
    dtype: torch.dtype,
    live: Mapping[int, LiveCodec],
    groups: tuple[GroupSpec, ...],
    page_tokens: tuple[int, ...],
) -> dict[int, Selection]:
    """The selector at work, on each group that reads everything."""
    found: dict[int, Selection] = {}
    if selector is None:
        return found
    for index, (group, tokens) in enumerate(zip(groups, page_tokens, strict=True)):
        if group.window is not None:
            continue
        pages = live[index]
        begun = selector.start(group, codec.page_bytes(group, tokens, dtype), pages)
        if begun is not None:
            assert isinstance(pages, Paged | Resident), "cards refuse codecs of whole blocks"
            found[index] = Selection(begun, pages)
    return found


def expect_choice(selects: Iterable[bool]) -> None:
    """Raises ConfigError if no head of any layer could select."""
    if not any(selects):
        raise ConfigError(
            "a KV selector has nothing to choose from: every head of this model and layout reads a window; "
            "use --kv-selector everything"
        )
