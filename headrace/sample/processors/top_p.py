"""Keeps the smallest set of tokens whose probability reaches p (nucleus sampling).

Paper   https://arxiv.org/abs/1904.09751 (the curious case of neural text degeneration)
Idea    From the likeliest token down, keep tokens until their sum reaches p, the one that reaches it included.
        Of equals, the lower ids come first.
Trades  Cuts the unreliable tail, by a share that follows the shape of the distribution.
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
        return draw.top_p(logits_V, self._p)
