"""Keeps the smallest set of tokens whose probability reaches p (nucleus sampling).

Paper   https://arxiv.org/abs/1904.09751 (the curious case of neural text degeneration)
Idea    Sort by probability; keep tokens until their sum reaches p, the one that reaches it included.
Trades  Cuts the unreliable tail, by a share that follows the shape of the distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.sample.stateless import Stateless
from headrace.slots import Card
from headrace.types import SamplingParams


@dataclass(frozen=True, kw_only=True)
class TopP:
    """Applies SamplingParams.top_p."""

    card: ClassVar[Card] = Card(slot="processors", exact="bits", paper="https://arxiv.org/abs/1904.09751")

    def init(
        self, params: SamplingParams, tokens: Sequence[int], prompt_len: int, eos: Sequence[int]
    ) -> _State | None:
        return None if params.top_p >= 1 or params.temperature == 0 else _State(params.top_p)


class _State(Stateless):
    def __init__(self, p: float) -> None:
        self._p = p

    def apply(self, logits_V: Tensor) -> Tensor:
        probs_V, order_V = torch.softmax(logits_V, -1).sort(descending=True, stable=True)
        before_V = probs_V.cumsum(-1) - probs_V  # probability of everything more likely
        return logits_V.index_fill(0, order_V[before_V >= self._p], -torch.inf)
