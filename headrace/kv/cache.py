"""KVCache: keys and values from write to read. Layout, codec, keeper and prefix tree meet only here.

Inside a layer:  write -> seal -> fold -> index -> select -> attend (per segment) -> merge.
After a step, per sequence:  advance = keep -> free.

To seal is to store a block that has become whole, with a codec that takes whole blocks; see kv/groups.py. It may hold
drafted tokens: if they are refused, the block is sealed again when the right ones are there. Its tokens in the rest are
let go of once they are final. To fold is to merge what leaves a window into a record; see kv/summary.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.errors import ConfigError
from headrace.kernels.attention import Queries, State, merge
from headrace.kv import paged, summary
from headrace.kv.branches import Stretch, ends, right_branch, stretches, writes
from headrace.kv.chunks import BEFORE, FAR, OWN, Chunks, Segment
from headrace.kv.codecs import Codec, LiveCodec
from headrace.kv.groups import GroupSpec, PageSizes
from headrace.kv.keepers import Keeper
from headrace.kv.layouts import Layout
from headrace.kv.parts import Part, parts_of
from headrace.kv.pool import PagePool
from headrace.kv.prefix import PrefixTree
from headrace.kv.present import Present, begin_spans, with_themselves
from headrace.kv.residence import Residence
from headrace.kv.resident import Resident
from headrace.kv.reuse import namespace, reusable
from headrace.kv.runs import alike, apart, live_runs
from headrace.kv.selection import Selecting, begin, expect_choice, select_rows
from headrace.kv.selectors import Selector
from headrace.kv.shelf import Shelf
from headrace.kv.stored import cut, page_sizes, stored_groups
from headrace.kv.tables import BlockTables
from headrace.kv.tiers import Tier
from headrace.kv.unrotated import Unrotated, rotaries
from headrace.types import Batch, Fold, Reads, Run, Sequence, Span, Status, StepPlan


class KVCache:
    """Paged keys and values of every sequence, in `num_bytes` of memory (less than one page of it unused)."""

    def __init__(
        self,
        architecture: Architecture,
        *,
        layout: Layout,
        codec: Codec,
        keeper: Keeper,
        selector: Selector | None = None,
        tier: Tier | None = None,
        dtype: torch.dtype,
        device: torch.device,
        page_tokens: int,
        num_bytes: int,
        host_bytes: int = 0,
        fingerprint: str | None = None,
        poison: bool = False,
    ) -> None:
        """fingerprint: the prefix cache's key for this stack and model; None switches the cache off.
        poison: free pages are filled with NaN, so that a stray read shows (tests). Raises ConfigError for a selector
        that has nothing to choose from.
        """
        under = None if tier is None else tier.under
        groups = stored_groups(layout.groups(architecture), keeper, codec, under)
        sizes = page_sizes(groups, page_tokens, codec, dtype, selector)
        if num_bytes < sizes.page_bytes * 2 * len(groups):
            raise ConfigError(
                f"a KV pool of {num_bytes:,} bytes has {num_bytes // sizes.page_bytes} pages of {sizes.page_bytes:,}, "
                f"and needs at least {2 * len(groups)}: raise kv_bytes or lower page_tokens"
            )
        count = num_bytes // sizes.page_bytes
        lies = None if under is None else Residence(cut(groups, sizes, codec, dtype, selector), count, under)
        pool = PagePool(count, sizes.page_bytes, device, poison, lies)
        host = None
        if host_bytes:
            host = PagePool(host_bytes // sizes.page_bytes, sizes.page_bytes, torch.device("cpu"), poison)
        tree = None if fingerprint is None else _tree(pool, groups, sizes, fingerprint, tier)
        self.tables = BlockTables(pool, host, groups, sizes, tree)
        self._chunks = Chunks(architecture, dtype, device).check(groups, sizes)
        self._device, self._thinnings = device, architecture.thinnings
        self._live: dict[int, LiveCodec] = {}
        self._summaries: dict[int, summary.LiveSummary] = {}
        self._asked: dict[int, summary.AskedQueries] = {}
        for index, (group, tokens) in enumerate(zip(groups, sizes.tokens, strict=True)):
            if group.holds == "summary":
                self._summaries[index] = summary.start_summary(group, group.block // tokens, dtype)
            elif group.holds == "queries":
                self._asked[index] = summary.AskedQueries(group, tokens, dtype)
            elif group.holds == "rest":
                self._live[index] = paged.Paged(group, tokens, dtype, codec.rest or dtype)
            else:
                live = codec.start(group, tokens, dtype)
                self._live[index] = Resident(live, lies, index, tokens) if lies else live
        self._unrotated = None if codec.rotated else Unrotated(rotaries(architecture, device, dtype))
        self._layers = parts_of(architecture, groups)
        self._selector = selector
        self._selections = begin(selector, codec, dtype, self._live, groups, sizes.tokens)
        parts = [part for layer in self._layers.values() for part in layer]
        if selector is not None and selector.card.exact != "bits":
            expect_choice(part.group in self._selections and part.window is None for part in parts)
        self.tables.prompts_only = bool(self._selections) or architecture.partly

    def attend(self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, batch: Batch) -> Tensor:
        """Stores the batch's keys and values of one layer, then attends; returns [T, N, H] in q's dtype.

        Every row sees what its sequence stored at its own position and before, within the layer's window.
        """
        arena = self.tables.pool.arena_PX
        parts = self._layers[layer]
        for part in parts:
            heads = slice(None) if part.kv_heads is None else part.kv_heads
            slots_T, k, v, positions_T = batch.slots[part.group], k_TGH, v_TGH, batch.positions_T
            if batch.written:
                k, v, positions_T = (x[batch.written[part.group]] for x in (k, v, positions_T))
            keys = k[:, heads]
            if self._unrotated is not None:
                keys = self._unrotated.back(layer, keys, positions_T)
            self._live[part.group].write(arena, layer, keys, v[:, heads], slots_T)
            if part.blocks is not None and len(batch.slots[part.blocks]):
                self._seal(part, layer, batch)
            if part.records is not None:
                self._fold(part, layer, q_TNH[:, part.heads], batch)
            selection = self._selections.get(part.group)
            if selection is not None and part.window is None:
                selection.index(arena, layer, batch.selecting[part.group])
        if batch.returned is not None:
            queries = Queries(q_TNH, batch.positions_T, parts[0].scale, None)
            state = self._state(parts[0], layer, queries, batch)
            return with_themselves(state, queries, k_TGH, v_TGH, batch.returned)
        if len(parts) == 1 and parts[0].kv_heads is None:
            return self._attend_part(parts[0], layer, q_TNH, batch)
        out_TNH = torch.empty_like(q_TNH)
        for part in parts:  # heads of one layer live in several groups
            out_TNH[:, part.heads] = self._attend_part(part, layer, q_TNH[:, part.heads], batch)
        return out_TNH

    def keys(self, layer: int, pages_B: Tensor, length: int) -> Tensor:
        """The first `length` in these pages, [L, G, H], of a model with one cache group."""
        return self._read(0, layer, pages_B, length, 0)[0]

    def reserve(self, plan: StepPlan, sequences: Mapping[int, Sequence]) -> StepPlan:
        """Carries out the plan's pauses and admissions, then makes every span's positions writable. Returns the plan,
        without newcomers whose prefix a tier has lost: they wait, and find less of it next time.

        Admissions come before new pages are taken, so that no page of a hit is evicted. Raises OutOfPages, which a
        policy that keeps its contract prevents.
        """
        tables = self.tables
        for paused in plan.recompute:
            tables.release(paused)
        for paused in plan.swap_out:
            tables.swap_out(paused)
        for span in plan.spans:
            if not tables.holds(span.seq) and span.seq not in plan.swap_in:
                seq = sequences[span.seq]
                start = tables.admit(seq.id, reusable(seq, tables.prompts_only), namespace(seq))
                assert start == span.start, f"{span} should start where the prefix hit ends, at {start}"
                if self._thinnings:
                    tables.present[seq.id] = Present(seq, self._thinnings, tables.sizes.tokens[0])
        for resumed in plan.swap_in:
            tables.swap_in(resumed, namespace(sequences[resumed]))
        if tables.tiered:
            plan = replace(plan, spans=tuple(span for span in plan.spans if tables.bring(span.seq)))
        for span in plan.spans:
            own, *others = ends(span)
            tables.reserve(span.seq, span.start, own)
            if others:
                tables.branch(span.seq, span.stop, others)
        return plan

    def look_ahead(self, waiting: Iterable[Sequence]) -> None:
        """These wait, in this order: what the first of them will read from a tier is fetched beside the step."""
        for seq in waiting if self.tables.tiered else ():
            if not self.tables.holds(seq.id) and seq.status is Status.WAITING:
                self.tables.look_ahead(reusable(seq, self.tables.prompts_only), namespace(seq))
                return

    def advance(self, seq: Sequence) -> None:
        """Its positions up to num_computed are final: see BlockTables.advance."""
        cached = min(seq.num_computed, seq.prompt_len) if self.tables.prompts_only else seq.num_computed
        self.tables.advance(seq.id, seq.tokens, seq.num_computed, cached)

    def place(self, spans: tuple[Span, ...], sequences: Mapping[int, Sequence]) -> Placed:
        """Where the spans' rows are written and what they read, per group."""
        slots, written, sealed, reads, folded, segments = [], [], [], [], [], []
        rows = stretches(spans, self.tables)
        trees = any(span.parents is not None for span in spans)
        for index, group in enumerate(self.tables.groups):
            blocks = group.holds == "blocks"
            parts = writes(spans, self.tables, index)
            rowwise = [] if group.holds == "summary" else parts
            slots.append(self._tensor([slot for part in rowwise for slot in self._slots(index, *part[:3])]))
            sources = [page for part in parts for page in self._pages(index + 1, *part[:3])] if blocks else []
            sealed.append(self._tensor(sources))
            reads.append(self._reads(rows, index)[1])
            if self._chunks.size is not None:
                found = [self._reads(rows, index, segment) for segment in (BEFORE, FAR)]
                segments.append([Segment(self._tensor(own), read) for own, read in found])
            folded.append(
                tuple(summary.folds(self.tables, index, [part[:3] for part in parts], self._device))
            )
            if trees:
                written.append(self._tensor([row for part in parts for row in part.rows]))
        some = tuple(segments) if any(len(pair[0].rows_K) for pair in segments) else ()
        selecting = {index: self._selecting(rows, spans, sequences, index) for index in self._selections}
        placed = (tuple(slots), tuple(written), tuple(sealed), tuple(reads), tuple(folded), selecting)
        return Placed(*placed, some, begin_spans(spans, self.tables.present))

    def settle(self, span: Span, accepted: tuple[int, ...]) -> None:
        """Lets go of all of a tree but a branch that has the guesses among the accepted tokens."""
        if span.parents is not None:
            self.tables.settle(span.seq, right_branch(span, accepted))

    def bytes_per_token(self) -> float:
        """Bytes that one stored token takes over every group, from the pages themselves; those of an unfinished block
        take more for a while."""
        tables = self.tables
        pairs = zip(tables.groups, tables.sizes.tokens, strict=True)
        return sum(
            tables.sizes.page_bytes / tokens for group, tokens in pairs if group.holds in ("all", "blocks")
        )

    def check(self) -> None:
        """Every invariant of pages, tables and prefix tree; tests call it after each step."""
        self.tables.check()

    def _seal(self, part: Part, layer: int, batch: Batch) -> None:
        """Stores the blocks that have become whole, read from the pages that hold their tokens."""
        assert part.blocks is not None
        arena, slots_T = self.tables.pool.arena_PX, batch.slots[part.blocks]
        k_TGH, v_TGH = self._live[part.group].read(arena, layer, batch.sealed[part.blocks], len(slots_T))
        self._live[part.blocks].write(arena, layer, k_TGH, v_TGH, slots_T)

    def _fold(self, part: Part, layer: int, q_TNH: Tensor, batch: Batch) -> None:
        """Makes the records of blocks that have become whole."""
        assert part.records is not None
        arena, read = self.tables.pool.arena_PX, partial(self._read, part.stored)
        asked = None if part.asked is None else self._asked[part.asked]
        if asked is not None and part.asked is not None:
            rows = q_TNH[batch.written[part.asked]] if batch.written else q_TNH
            asked.write(arena, layer, rows, batch.slots[part.asked])
        for fold in batch.folds[part.records]:
            queries = None if asked is None else asked.read(arena, layer, fold, part.scale)
            self._summaries[part.records].merge(arena, layer, fold, read, queries)

    def _read(
        self, group: int, layer: int, pages_B: Tensor, length: int, start: int
    ) -> tuple[Tensor, Tensor]:
        """Keys, rotated, and values of the tokens from position `start` on."""
        store, arena = self._live[group], self.tables.pool.arena_PX
        if self._unrotated is None:
            return store.read(arena, layer, pages_B, length)
        return self._unrotated.read(store, arena, start, layer, pages_B, length)

    def _attend_part(self, part: Part, layer: int, q_TNH: Tensor, batch: Batch) -> Tensor:
        arena = self.tables.pool.arena_PX
        queries = Queries(q_TNH, batch.positions_T, part.scale, part.window, part.sink)
        selection = self._selections.get(part.group)
        if selection is not None and part.window is None:
            out_TNH = selection.attend(arena, layer, queries, batch.selecting[part.group])
            if out_TNH is not None:
                return out_TNH
        return self._state(part, layer, queries, batch).out_TNH

    def _state(self, part: Part, layer: int, queries: Queries, batch: Batch) -> State:
        """Attention over everything that rows read."""
        arena = self.tables.pool.arena_PX
        live, reads = self._live[part.group], batch.reads[part.group]
        if self._unrotated is None:
            state = live.attend(arena, layer, queries, reads)
        else:
            size = self.tables.sizes.tokens[part.group]
            state = self._unrotated.attend(live, arena, size, layer, queries, reads)
        if part.blocks is not None:
            blocks = self._live[part.blocks].attend(arena, layer, queries, batch.reads[part.blocks])
            state = merge([blocks, state])
        if part.records is not None and batch.reads[part.records].runs:
            reads = batch.reads[part.records]
            state = merge([self._summaries[part.records].attend(arena, layer, queries, reads), state])
        for group in (part.group, part.blocks) if batch.segments else ():
            if group is not None:
                self._add_segments(state, layer, queries, batch, group)
        return state

    def _add_segments(self, state: State, layer: int, queries: Queries, batch: Batch, group: int) -> None:
        """Merges what rows read of chunks before their own into their state."""
        for segment, (rows_K, reads) in enumerate(batch.segments[group], BEFORE):
            if len(rows_K):
                positions_K = queries.positions_T[rows_K]
                q_KNH = self._chunks.turn(layer, segment, queries.q_TNH[rows_K], positions_K)
                those = queries._replace(q_TNH=q_KNH, positions_T=positions_K)
                found = self._live[group].attend(self.tables.pool.arena_PX, layer, those, reads)
                own = State(state.out_TNH[rows_K], state.lse_TN[rows_K])
                state.out_TNH[rows_K], state.lse_TN[rows_K] = merge([own, found])

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _slots(self, group: int, seq: int, start: int, stop: int) -> list[int]:
        size, pages = self.tables.sizes.tokens[group], self.tables.live_pages(seq, group)
        return [pages[p // size] * size + p % size for p in range(start, stop)]

    def _pages(self, group: int, seq: int, start: int, stop: int) -> list[int]:
        """Of positions [start, stop), whole pages."""
        size = self.tables.sizes.tokens[group]
        return self.tables.live_pages(seq, group)[start // size : stop // size]

    def _selecting(
        self, rows: list[Stretch], spans: tuple[Span, ...], sequences: Mapping[int, Sequence], group: int
    ) -> Selecting:
        tables, parts = self.tables, writes(spans, self.tables, group)
        assert self._selector is not None
        return select_rows(
            rows,
            {table: sequences[s.seq].prompt_len for s in spans for table in tables.branches(s.seq)},
            self._selector,
            tables.sizes.tokens[group],
            lambda table: tables.live_pages(table, group),
            lambda others: self._reads(others, group)[1],
            self._tensor([page for part in parts for page in self._pages(group, *part[:3])]),
        )

    def _reads(self, rows: list[Stretch], group: int, segment: int = OWN) -> tuple[list[int], Reads]:
        """Whose rows, and runs of live pages from the first that a query can see; apart where rows see other blocks or
        chunks. Of their own chunk all rows have one; of others those that see something, counted among themselves."""
        size, spec = self.tables.sizes.tokens[group], self.tables.groups[group]
        listed: list[int] = []
        runs: list[Run] = []
        found: list[int] = []
        for part in rows:
            pages, row = self.tables.live_pages(part.table, group), part.row
            for first, end in alike(part, spec, self._chunks):
                before, at = len(runs), row if segment == OWN else len(found)
                for low, high in apart(self._chunks.part(spec.readable(first, end), first, segment), size):
                    for start, stop in live_runs(pages, low // size, -(-high // size)):
                        length = min(high, stop * size) - start * size
                        runs.append(Run(at, at + end - first, len(listed), start * size, length))
                        listed += pages[start:stop]
                if len(runs) == before and spec.holds == "blocks" and segment == OWN:
                    runs.append(Run(at, at + end - first, len(listed), 0, 0))
                if len(runs) > before:
                    found += range(row, row + end - first)
                row += end - first
        return found, Reads(self._tensor(listed), tuple(runs))


class Placed(NamedTuple):
    """What a batch knows of the cache. All per group."""

    slots: tuple[Tensor, ...]
    """int64: where each row is written, page * page_tokens + offset; in a group of blocks, each token of the blocks
    that become whole."""
    written: tuple[Tensor, ...]
    """int64: which row goes to each slot; nothing at all where every row is written once, in order."""
    sealed: tuple[Tensor, ...]
    """int64: in a group of blocks, the pages of the group beside it that these tokens are read from."""
    reads: tuple[Reads, ...]
    folds: tuple[tuple[Fold, ...], ...]
    selecting: Mapping[int, Selecting]
    """Only of groups that have a selector."""
    segments: tuple[list[Segment], ...] = ()
    """See Batch."""
    present: tuple[Present, ...] = ()
    """See Batch."""


def _tree(
    pool: PagePool, groups: tuple[GroupSpec, ...], sizes: PageSizes, fingerprint: str, tier: Tier | None
) -> PrefixTree:
    windows, sinks = [_resumed(group) for group in groups], [_sink(group) for group in groups]
    behind = None if tier is None else tier.behind
    shelf = None if behind is None else Shelf(behind, pool, sizes)
    return PrefixTree(pool, sizes.granule, windows, fingerprint, sinks=sinks, shelf=shelf)


def _resumed(group: GroupSpec) -> int | None:
    """How far back a sequence reads that resumes after whole blocks: of the rest, nothing; of records, the last."""
    if group.holds == "summary":
        return 1
    return 0 if group.passing else group.window


def _sink(group: GroupSpec) -> int:
    return group.sink if group.holds in ("all", "blocks") else 0
