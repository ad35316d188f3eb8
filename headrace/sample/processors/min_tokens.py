"""Forbids end tokens until enough tokens are generated.

Paper   none: a common option
Idea    The logits of end and stop tokens are -inf for the first min_tokens tokens.
Trades  A minimum length, at the price of forcing a model that wanted to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.params import SamplingParams
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class MinTokens:
    """Applies SamplingParams.min_tokens."""

    card: ClassVar[Card] = Card(slot="processors", exact="bits", paper="none: a common option")

    def init(
        self, params: SamplingParams, tokens: Sequence[int], prompt_len: int, eos: Sequence[int]
    ) -> _State | None:
        ends = (*eos, *params.stop_token_ids)
        left = params.min_tokens - (len(tokens) - prompt_len)
        return _State(torch.tensor(ends), left) if ends and left > 0 else None


class _State:
    def __init__(self, ends: Tensor, left: int) -> None:
        self._ends = ends
        self._left = left  # below zero once reached, so that a rollback can come back

    def apply(self, logits_V: Tensor) -> Tensor:
        if self._left <= 0:
            return logits_V
        return logits_V.index_fill(0, self._ends.to(logits_V.device), -torch.inf)

    def accept(self, token: int, logits_V: Tensor) -> None:
        self._left -= 1

    def fork(self) -> _State:
        return _State(self._ends, self._left)

    def rollback(self, count: int) -> None:
        self._left += count
