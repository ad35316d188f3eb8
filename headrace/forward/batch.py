"""build_batch: a plan's spans as packed tensors. The only code that knows the packing.

rows    [ span 0: start .. stop, draft | span 1 ... | span 2 ... ]      starts = 0, len(span 0), ...
        guesses in the order of the draft, also where they are a tree
rows_R  the last 1 + len(draft) rows of every span that reaches the end of its sequence, if it goes on from there
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from headrace.forward.pooling import pooled_rows
from headrace.kv.cache import KVCache
from headrace.types import Batch, Scored, Sequence, Span
from headrace.weight.adapter import Adapter, Mix


def build_batch(
    spans: tuple[Span, ...], sequences: Mapping[int, Sequence], kv: KVCache, device: torch.device
) -> Batch:
    """The batch of one step; pages for every span are reserved already."""
    ids = [
        token
        for span in spans
        for token in (*sequences[span.seq].tokens[span.start : span.stop], *span.draft)
    ]
    positions = [p for span in spans for p in span.positions]
    starts = tuple(itertools.accumulate(map(len, spans), initial=0))
    rows = [
        row
        for span, end in zip(spans, starts[1:], strict=True)
        if span.stop == len(sequences[span.seq]) and sequences[span.seq].request.pooling is None
        for row in range(end - 1 - len(span.draft), end)
    ]
    scored = (_scored(span, start, sequences[span.seq]) for span, start in zip(spans, starts, strict=False))
    pooled = (
        pooled_rows(span, start, sequences[span.seq]) for span, start in zip(spans, starts, strict=False)
    )
    placed = kv.place(spans, sequences)
    return Batch(
        spans=spans,
        ids_T=torch.tensor(ids, dtype=torch.int64, device=device),
        positions_T=torch.tensor(positions, dtype=torch.int64, device=device),
        starts=starts,
        slots=placed.slots,
        sealed=placed.sealed,
        reads=placed.reads,
        segments=placed.segments,
        folds=placed.folds,
        rows_R=torch.tensor(rows, dtype=torch.int64, device=device),
        scored=tuple(part for part in scored if part is not None),
        mix=_mix(spans, starts, sequences),
        pooled=tuple(part for part in pooled if part is not None),
        beyond=tuple(span.start - sequences[span.seq].prompt_len + 1 for span in spans),
        selecting=placed.selecting,
        written=placed.written,
        present=placed.present,
    )


def one_text(ids_T: Tensor) -> Batch:
    """One text, all of it in one span, for a KV store without pages; nothing is sampled."""
    count = len(ids_T)
    return Batch(
        spans=(Span(0, 0, count),),
        ids_T=ids_T,
        positions_T=torch.arange(count, device=ids_T.device),
        starts=(0, count),
        slots=(),
        sealed=(),
        reads=(),
        folds=(),
        rows_R=ids_T.new_empty(0),
    )


def _mix(spans: tuple[Span, ...], starts: tuple[int, ...], sequences: Mapping[int, Sequence]) -> Mix | None:
    """The rows of each adapter."""
    rows: dict[Adapter, list[int]] = {}
    for span, start in zip(spans, starts, strict=False):
        adapter = sequences[span.seq].adapter
        if adapter is not None:
            rows.setdefault(adapter, []).extend(range(start, start + len(span)))
    return Mix(list(rows.items())) if rows else None


def _scored(span: Span, start_row: int, seq: Sequence) -> Scored | None:
    """The span's rows that precede prompt tokens not yet scored."""
    count = seq.request.params.prompt_logprobs
    first, last = max(seq.num_scored, span.start + 1), min(span.stop + 1, seq.prompt_len)
    if count is None or first >= last:
        return None
    return Scored(seq.id, start_row + first - 1 - span.start, tuple(seq.tokens[first:last]), count)
