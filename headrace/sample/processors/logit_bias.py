"""Adds a fixed amount to the logits of chosen tokens.

Paper   none: OpenAI's logit_bias
Idea    +100 all but forces a token, -100 all but forbids it.
Trades  Control without training, one token at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.params import SamplingParams
from headrace.sample.stateless import Stateless
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class LogitBias:
    """Applies SamplingParams.logit_bias."""

    card: ClassVar[Card] = Card(slot="processors", exact="bits", paper="none: OpenAI's logit_bias")

    def init(
        self, params: SamplingParams, tokens: Sequence[int], prompt_len: int, eos: Sequence[int]
    ) -> _State | None:
        return _State(params.logit_bias) if params.logit_bias else None


class _State(Stateless):
    def __init__(self, bias: Mapping[int, float]) -> None:
        self._tokens = torch.tensor(list(bias))
        self._bias = torch.tensor(list(bias.values()), dtype=torch.float64)

    def apply(self, logits_V: Tensor) -> Tensor:
        bias = self._bias.to(logits_V)
        return logits_V.index_add(0, self._tokens.to(logits_V.device), bias)
