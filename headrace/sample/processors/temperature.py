"""Divides logits by the temperature: below 1 sharpens the distribution, above 1 flattens it.

Paper   https://arxiv.org/abs/1503.02531 (softmax temperature)
Idea    softmax(logits / t). Temperature 0 is greedy and is decided in the sampler, without a division.
Trades  Likely against varied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headrace.params import SamplingParams
from headrace.sample.stateless import Stateless
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """Applies SamplingParams.temperature."""

    card: ClassVar[Card] = Card(slot="processors", exact="bits", paper="https://arxiv.org/abs/1503.02531")

    def init(
        self, params: SamplingParams, tokens: Sequence[int], prompt_len: int, eos: Sequence[int]
    ) -> _State | None:
        return None if params.temperature in (0, 1) else _State(params.temperature)


class _State(Stateless):
    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def apply(self, logits_V: Tensor) -> Tensor:
        return logits_V.div_(self._temperature)
