"""KVCache: keys and values from write to read. Layout, codec, keeper and prefix tree meet only here.

Inside a layer:  write -> attend (per segment) -> merge.      After a step, per sequence:  advance = keep -> free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.errors import ConfigError
from headrace.kernels.attention import Queries
from headrace.kv.codecs import Codec
from headrace.kv.groups import GroupSpec, size_pages
from headrace.kv.keepers import Keeper
from headrace.kv.layouts import Layout
from headrace.kv.pool import FREED, PagePool
from headrace.kv.prefix import PrefixTree
from headrace.kv.tables import BlockTables
from headrace.types import Batch, Reads, Run, Sequence, Span, StepPlan


class KVCache:
    """Paged keys and values of every sequence, in `num_bytes` of memory (less than one page of it unused)."""

    def __init__(
        self,
        architecture: Architecture,
        *,
        layout: Layout,
        codec: Codec,
        keeper: Keeper,
        dtype: torch.dtype,
        device: torch.device,
        page_tokens: int,
        num_bytes: int,
        host_bytes: int = 0,
        fingerprint: str | None = None,
        poison: bool = False,
    ) -> None:
        """fingerprint: the prefix cache's key for this stack and model; None switches the cache off.
        poison: free pages are filled with NaN, so that a stray read shows (tests).
        """
        groups = layout.groups(architecture)
        sizes = size_pages(groups, page_tokens, lambda group, tokens: codec.page_bytes(group, tokens, dtype))
        if num_bytes < sizes.page_bytes * 2 * len(groups):
            raise ConfigError(
                f"a KV pool of {num_bytes:,} bytes has {num_bytes // sizes.page_bytes} pages of {sizes.page_bytes:,}, "
                f"and needs at least {2 * len(groups)}: raise kv_bytes or lower page_tokens"
            )
        pool = PagePool(num_bytes // sizes.page_bytes, sizes.page_bytes, device, poison)
        host = None
        if host_bytes:
            host = PagePool(host_bytes // sizes.page_bytes, sizes.page_bytes, torch.device("cpu"), poison)
        tree = None
        if fingerprint is not None:
            tree = PrefixTree(pool, sizes.granule, [group.window for group in groups], fingerprint)
        self.tables = BlockTables(pool, host, groups, sizes, keeper, tree)
        self._device = device
        self._live = [
            codec.start(group, tokens, dtype) for group, tokens in zip(groups, sizes.tokens, strict=True)
        ]
        self._layers = _parts(architecture, groups)

    def attend(self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, batch: Batch) -> Tensor:
        """Stores the batch's keys and values of one layer, then attends; returns [T, N, H] in q's dtype.

        Every row sees what its sequence stored at its own position and before, within the layer's window.
        """
        arena = self.tables.pool.arena_PX
        parts = self._layers[layer]
        for part in parts:
            heads = slice(None) if part.kv_heads is None else part.kv_heads
            slots_T = batch.slots[part.group]
            self._live[part.group].write(arena, layer, k_TGH[:, heads], v_TGH[:, heads], slots_T)
        if len(parts) == 1 and parts[0].kv_heads is None:
            return self._attend_part(parts[0], layer, q_TNH, batch)
        out_TNH = torch.empty_like(q_TNH)
        for part in parts:  # heads of one layer live in several groups
            out_TNH[:, part.heads] = self._attend_part(part, layer, q_TNH[:, part.heads], batch)
        return out_TNH

    def reserve(self, plan: StepPlan, sequences: Mapping[int, Sequence]) -> None:
        """Carries out the plan's pauses and admissions, then makes every span's positions writable.

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
                start = tables.admit(seq.id, reusable(seq), namespace(seq))
                assert start == span.start, f"{span} should start where the prefix hit ends, at {start}"
        for resumed in plan.swap_in:
            tables.swap_in(resumed, namespace(sequences[resumed]))
        for span in plan.spans:
            tables.reserve(span.seq, span.start, span.start + len(span))

    def place(self, spans: tuple[Span, ...]) -> tuple[tuple[Tensor, ...], tuple[Reads, ...]]:
        """Where the spans' rows are written (slots) and what they read, per group."""
        slots, reads = [], []
        for group in range(len(self.tables.groups)):
            rows = [slot for span in spans for slot in self._slots(span, group)]
            slots.append(torch.tensor(rows, dtype=torch.int64, device=self._device))
            reads.append(self._reads(spans, group))
        return tuple(slots), tuple(reads)

    def bytes_per_token(self) -> float:
        """Bytes that one stored token takes over every group, from the pages themselves."""
        sizes = self.tables.sizes
        return sum(sizes.page_bytes / tokens for tokens in sizes.tokens)

    def check(self) -> None:
        """Every invariant of pages, tables and prefix tree; tests call it after each step."""
        self.tables.check()

    def _attend_part(self, part: _Part, layer: int, q_TNH: Tensor, batch: Batch) -> Tensor:
        codec, arena = self._live[part.group], self.tables.pool.arena_PX
        queries = Queries(q_TNH, batch.positions_T, part.scale, part.window)
        return codec.attend(arena, layer, queries, batch.reads[part.group]).out_TNH

    def _slots(self, span: Span, group: int) -> list[int]:
        size, pages = self.tables.sizes.tokens[group], self.tables.live_pages(span.seq, group)
        return [pages[p // size] * size + p % size for p in range(span.start, span.start + len(span))]

    def _reads(self, spans: tuple[Span, ...], group: int) -> Reads:
        """Runs of live pages, each span's from the first that its first query can see."""
        size, window = self.tables.sizes.tokens[group], self.tables.groups[group].window
        listed: list[int] = []
        runs: list[Run] = []
        row = 0
        for span in spans:
            pages, end = self.tables.live_pages(span.seq, group), span.start + len(span)
            first = 0 if window is None else max(0, span.start - window + 1) // size
            for start, stop in _live_runs(pages, first, -(-end // size)):
                length = min(end, stop * size) - start * size
                runs.append(Run(row, row + len(span), len(listed), start * size, length))
                listed += pages[start:stop]
            row += len(span)
        return Reads(torch.tensor(listed, dtype=torch.int64, device=self._device), tuple(runs))


def _live_runs(pages: list[int], first: int, last: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of each stretch of pages in [first, last) that were not freed."""
    start = first
    for index in range(first, last):
        if pages[index] == FREED:
            if start < index:
                yield start, index
            start = index + 1
    if start < last:
        yield start, last


def namespace(seq: Sequence) -> str:
    """Of its pages in the prefix cache: they are those of its tenant, and of its adapter's very content."""
    assert seq.adapter is None or seq.adapter.digest, "the adapter's content is not known yet"
    adapter, salt = seq.adapter.digest if seq.adapter else "", seq.request.salt
    return f"{adapter}:{salt}" if adapter or salt else ""  # no salt can spell another adapter's


def reusable(seq: Sequence) -> list[int]:
    """The tokens of a waiting sequence, up to one that has to run: a prefix hit may hold those before it.

    Cached are keys and values, not what the model thought of a token: what is to be scored or pooled runs again, up to
    where it was delivered or added up before a pause. The last token's hidden state alone needs the last token alone.
    """
    if seq.request.params.prompt_logprobs is not None and seq.num_scored < seq.prompt_len:
        return seq.tokens[: seq.num_scored]
    if seq.request.pooling is not None and seq.request.pooling.kind == "mean":
        return seq.tokens[: 1 + (seq.hidden_sum.stop if seq.hidden_sum else 0)]
    return seq.tokens


class _Part:
    """The heads of one layer that one group stores."""

    def __init__(self, architecture: Architecture, layer: int, group: int, kv_heads: tuple[int, ...]) -> None:
        spec = architecture.blocks[layer].attention
        self.group = group
        self.scale = spec.scale
        self.window = spec.window
        whole = kv_heads == tuple(range(spec.kv_heads))
        each = spec.heads // spec.kv_heads
        self.kv_heads = None if whole else list(kv_heads)
        self.heads = [g * each + i for g in kv_heads for i in range(each)]


def _parts(architecture: Architecture, groups: tuple[GroupSpec, ...]) -> Mapping[int, list[_Part]]:
    parts: dict[int, list[_Part]] = {}
    for index, group in enumerate(groups):
        for member in group.members:
            parts.setdefault(member.layer, []).append(
                _Part(architecture, member.layer, index, member.kv_heads)
            )
    for layer, block in enumerate(architecture.blocks):
        heads = sorted(h for part in parts[layer] for h in (part.kv_heads or range(block.attention.kv_heads)))
        assert heads == list(range(block.attention.kv_heads)), f"the layout leaves out heads of layer {layer}"
    return parts
