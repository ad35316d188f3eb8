"""Some rows of a batch, as a batch: what is handed to a layer that the others leave out.

rows    [ span 0: 0 1 2 3 | span 1: 0 1 2 ]  of which 0 1 2 | 0   ->   [ span 0: 0 1 2 | span 1: 0 ]
"""

from __future__ import annotations

import bisect
from dataclasses import replace

import torch
from torch import Tensor

from headrace.types import Batch, Reads


def rows_within(batch: Batch, reach: int) -> Tensor:
    """Rows at most `reach` beyond their prompts, rising: int64 [K]."""
    kept: list[int] = []
    for span, first, beyond in zip(batch.spans, batch.starts, batch.beyond, strict=False):
        kept += range(first, first + min(len(span), max(0, reach - beyond + 1)))
    return torch.tensor(kept, dtype=torch.int64, device=batch.ids_T.device)


def subset(batch: Batch, rows_K: Tensor) -> Batch:
    """These rows, rising, of a batch whose cache groups store every token; they see what they saw before."""
    rows = rows_K.tolist()

    def new(row: int) -> int:
        """Where the first row that is not before this one is now."""
        return bisect.bisect_left(rows, row)

    reads = []
    for old in batch.reads:
        moved = [run._replace(first_row=new(run.first_row), end_row=new(run.end_row)) for run in old.runs]
        reads.append(Reads(old.pages_B, tuple(run for run in moved if run.first_row < run.end_row)))
    return replace(
        batch,
        ids_T=batch.ids_T[rows_K],
        positions_T=batch.positions_T[rows_K],
        starts=tuple(map(new, batch.starts)),
        slots=tuple(slots_T[rows_K] for slots_T in batch.slots),
        reads=tuple(reads),
        mix=None if batch.mix is None else batch.mix.of(rows),
    )
