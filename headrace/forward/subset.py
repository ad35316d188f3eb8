"""Some rows of a batch, as a batch: what is handed to a layer that the others leave out.

rows    [ span 0: 0 1 2 3 | span 1: 0 1 2 ]  of which 0 1 2 | 0   ->   [ span 0: 0 1 2 | span 1: 0 ]
"""

from __future__ import annotations

import bisect
from dataclasses import replace

import torch
from torch import Tensor

from headrace.kv.chunks import Segment
from headrace.types import Batch, Reads


def rows_within(batch: Batch, reach: int) -> Tensor:
    """Rows at most `reach` beyond their prompts, rising: int64 [K]."""
    kept, positions = [], batch.positions_T.tolist()
    for span, first, beyond in zip(batch.spans, batch.starts, batch.beyond, strict=False):
        last = span.start + reach - beyond
        kept += [row for row in range(first, first + len(span)) if positions[row] <= last]
    return torch.tensor(kept, dtype=torch.int64, device=batch.ids_T.device)


def subset(batch: Batch, rows_K: Tensor) -> Batch:
    """These rows, rising, of a batch whose cache groups store every token; they see what they saw before."""
    rows, positions_T = rows_K.tolist(), batch.positions_T[rows_K]
    positions = positions_T.tolist()
    segments = [[_segment(segment, rows, positions) for segment in group] for group in batch.segments]
    slots, written = batch.slots, batch.written
    if written:
        held = [torch.isin(which_T, rows_K) for which_T in written]
        slots = tuple(slots_T[held_T] for slots_T, held_T in zip(slots, held, strict=True))
        written = tuple(torch.searchsorted(rows_K, w[h]) for w, h in zip(written, held, strict=True))
    else:
        slots = tuple(slots_T[rows_K] for slots_T in slots)
    return replace(
        batch,
        ids_T=batch.ids_T[rows_K],
        positions_T=positions_T,
        starts=tuple(_new(row, rows) for row in batch.starts),
        slots=slots,
        written=written,
        reads=tuple(_reads(reads, rows, positions) for reads in batch.reads),
        segments=tuple(segments),
        mix=None if batch.mix is None else batch.mix.of(rows),
    )


def _new(row: int, rows: list[int]) -> int:
    """Where the first of the rows that is not before this one is among them."""
    return bisect.bisect_left(rows, row)


def _reads(reads: Reads, rows: list[int], positions: list[int]) -> Reads:
    """What these rows read, which lie at these positions. Tokens after the last of them may have left the layer out, as
    guesses do: nothing is stored of them, and they must not be touched."""
    found = []
    for run in reads.runs:
        first, end = _new(run.first_row, rows), _new(run.end_row, rows)
        length = min(run.length, max(positions[first:end], default=-1) + 1 - run.start)
        if length > 0:
            found.append(run._replace(first_row=first, end_row=end, length=length))
    return Reads(reads.pages_B, tuple(found))


def _segment(segment: Segment, rows: list[int], positions: list[int]) -> Segment:
    at, own = dict(zip(rows, positions, strict=True)), segment.rows_K.tolist()
    kept = [place for place, row in enumerate(own) if row in at]
    new = [_new(own[place], rows) for place in kept]
    reads = _reads(segment.reads, kept, [at[own[place]] for place in kept])
    return Segment(segment.rows_K.new_tensor(new), reads)
