"""Drops tokens less likely than a share of the likeliest one.

Paper   https://arxiv.org/abs/2407.01082 (min-p sampling)
Idea    Keep tokens with probability >= min_p * max probability: strict where the model is sure, lax where it is not.
Trades  Stays coherent at higher temperatures than top-p does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headrace.kernels import draw
from headrace.params import SamplingParams
from headrace.sample.stateless import Stateless
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class MinP:
    """Applies SamplingParams.min_p."""

    card: ClassVar[Card] = Card(slot="processors", exact="bits", paper="https://arxiv.org/abs/2407.01082")

    def init(
        self, params: SamplingParams, tokens: Sequence[int], prompt_len: int, eos: Sequence[int]
    ) -> _State | None:
        return None if params.min_p == 0 or params.temperature == 0 else _State(params.min_p)


class _State(Stateless):
    def __init__(self, min_p: float) -> None:
        self._log_share = math.log(min_p)

    def apply(self, logits_V: Tensor) -> Tensor:
        return draw.min_p(logits_V, self._log_share)
