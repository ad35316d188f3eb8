"""A KV store for tests: one sequence, keys and values of every layer in one tensor each, the obvious attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.types import Batch, Span


class DenseKV:
    """Holds one sequence. Rows may come in any number of calls, as long as positions go up."""

    def __init__(self, architecture: Architecture) -> None:
        self.specs = [block.attention for block in architecture.blocks]
        self.stored: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, batch: Batch) -> Tensor:
        spec = self.specs[layer]
        if layer in self.stored:
            k_TGH = torch.cat((self.stored[layer][0], k_TGH))
            v_TGH = torch.cat((self.stored[layer][1], v_TGH))
        self.stored[layer] = (k_TGH, v_TGH)
        seen_TL = self._seen(batch.positions_T, torch.arange(len(k_TGH)), spec.window)
        group = spec.heads // spec.kv_heads
        k_LNH, v_LNH = k_TGH.repeat_interleave(group, dim=1), v_TGH.repeat_interleave(group, dim=1)
        score_NTL = torch.einsum("tnh,lnh->ntl", q_TNH, k_LNH) * spec.scale
        share_NTL = score_NTL.masked_fill(~seen_TL, float("-inf")).softmax(dim=-1)
        return torch.einsum("ntl,lnh->tnh", share_NTL, v_LNH)

    @staticmethod
    def _seen(query_T: Tensor, key_L: Tensor, window: int | None) -> Tensor:
        ahead_TL = query_T.unsqueeze(1) - key_L.unsqueeze(0)
        seen_TL = ahead_TL >= 0
        return seen_TL if window is None else seen_TL & (ahead_TL < window)


@dataclass(frozen=True)
class Rows:
    """As much of a Batch as a decoder and DenseKV read."""

    spans: tuple[Span, ...]
    ids_T: Tensor
    positions_T: Tensor
    starts: tuple[int, ...]
    mix: None = None
    present: tuple[()] = ()


def batch_of(ids: list[int], start: int = 0) -> Batch:
    """Rows [start, start + len(ids)) of one sequence."""
    span = Span(0, start, start + len(ids))
    return cast(Batch, Rows((span,), torch.tensor(ids), torch.arange(span.start, span.stop), (0, len(ids))))
