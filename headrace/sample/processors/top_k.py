"""Keeps the k most likely tokens.

Paper   https://arxiv.org/abs/1805.04833 (hierarchical neural story generation)
Idea    Everything below the k-th largest logit is forbidden; ties with it stay.
Trades  Cuts the unreliable tail, by a fixed count whatever the shape of the distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headrace.kernels import draw
from headrace.params import SamplingParams
from headrace.sample.stateless import Stateless
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class TopK:
    """Applies SamplingParams.top_k."""

    card: ClassVar[Card] = Card(slot="processors", exact="bits", paper="https://arxiv.org/abs/1805.04833")

    def init(
        self, params: SamplingParams, tokens: Sequence[int], prompt_len: int, eos: Sequence[int]
    ) -> _State | None:
        return None if params.top_k == 0 or params.temperature == 0 else _State(params.top_k)


class _State(Stateless):
    def __init__(self, k: int) -> None:
        self._k = k

    def apply(self, logits_V: Tensor) -> Tensor:
        return draw.top_k(logits_V, self._k)
