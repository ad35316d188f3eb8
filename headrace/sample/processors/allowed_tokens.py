"""Forbids every token but a few.

Paper   none: vLLM's allowed_token_ids
Idea    The logits of all others are -inf, so a choice among labels is one draw.
Trades  Exact control of one token, at the price of nonsense where none of the few fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.params import SamplingParams
from headrace.sample.stateless import Stateless
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class AllowedTokens:
    """Applies SamplingParams.allowed_token_ids."""

    card: ClassVar[Card] = Card(slot="processors", exact="bits", paper="none: vLLM's allowed_token_ids")

    def init(
        self, params: SamplingParams, tokens: Sequence[int], prompt_len: int, eos: Sequence[int]
    ) -> _State | None:
        return _State(params.allowed_token_ids) if params.allowed_token_ids else None


class _State(Stateless):
    def __init__(self, allowed: Sequence[int]) -> None:
        self._allowed = torch.tensor(allowed)

    def apply(self, logits_V: Tensor) -> Tensor:
        allowed = self._allowed.to(logits_V.device)
        return torch.full_like(logits_V, -torch.inf).index_copy_(0, allowed, logits_V[allowed])
