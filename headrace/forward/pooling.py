"""Pooling: a prompt's hidden states become one vector, chunk by chunk, with the same bits however it was cut.

mean   total_D += hidden of position 0, 1, 2, ...; in the end divided by their number
last   the hidden state of the last position, which attends to all others

Added one position after the other, in float64: a sum over the rows of a chunk would depend on where chunks end. That
takes some microseconds per token, much less than the token's forward pass.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from headrace.types import HiddenSum, Pooled, Pooling, Sequence, Span


def pooled_rows(span: Span, start_row: int, seq: Sequence) -> Pooled | None:
    """The span's rows that are pooled: none again that were before a pause."""
    pooling, before = seq.request.pooling, seq.hidden_sum
    if pooling is None:
        return None
    first = seq.prompt_len - 1 if pooling.kind == "last" else before.stop if before else 0
    first, complete = max(first, span.start), span.stop == seq.prompt_len
    if first >= span.stop:
        return None
    row = start_row - span.start
    return Pooled(
        seq.id, row + first, row + span.stop, before, span.stop, complete=pooling if complete else None
    )


def pool(part: Pooled, hidden_TD: Tensor) -> HiddenSum:
    """Adds the part's rows of [T, D] to what was there. Changes neither: a step that fails later is run again."""
    width = hidden_TD.shape[1]
    total_D = torch.zeros(width, dtype=torch.float64, device=hidden_TD.device)
    if part.before is not None:
        total_D.copy_(part.before.total_D)
    for row in range(part.first_row, part.end_row):
        total_D += hidden_TD[row]
    embedding = b"" if part.complete is None else _vector(total_D, part.complete, part.stop)
    return HiddenSum(total_D, part.stop, embedding)


def _vector(total_D: Tensor, pooling: Pooling, count: int) -> bytes:
    """float32, little-endian."""
    vector_D = total_D / count if pooling.kind == "mean" else total_D
    vector_D = vector_D[: pooling.dimensions]
    if pooling.normalize:
        vector_D = vector_D / vector_D.norm().clamp_min(torch.finfo(torch.float64).tiny)
    values = vector_D.to(device="cpu", dtype=torch.float32).numpy()
    return bytes((values if sys.byteorder == "little" else values.byteswap()).tobytes())
