"""Makes tokens that were already used less likely: repetition, presence and frequency penalties.

Paper   https://arxiv.org/abs/1909.05858 (CTRL, repetition); OpenAI's presence and frequency penalties
Idea    Repetition divides positive and multiplies negative logits of every token in prompt or output. Presence
        subtracts once per token present in the output, frequency once per occurrence.
Trades  Less looping, at the price of avoiding words that had to come again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.params import SamplingParams
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Penalties:
    """Applies SamplingParams.repetition_penalty, presence_penalty and frequency_penalty."""

    card: ClassVar[Card] = Card(slot="processors", exact="bits", paper="https://arxiv.org/abs/1909.05858")

    def init(
        self, params: SamplingParams, tokens: Sequence[int], prompt_len: int, eos: Sequence[int]
    ) -> _State | None:
        if params.repetition_penalty == 1 and params.presence_penalty == 0 and params.frequency_penalty == 0:
            return None
        return _State(params, frozenset(tokens[:prompt_len]), list(tokens[prompt_len:]))


class _State:
    def __init__(self, params: SamplingParams, prompt: frozenset[int], output: list[int]) -> None:
        self._params = params
        self._prompt = prompt
        self._output = output
        self._counts = Counter(output)

    def apply(self, logits_V: Tensor) -> Tensor:
        params, device = self._params, logits_V.device
        if params.repetition_penalty != 1:
            seen = torch.tensor(list(self._prompt | self._counts.keys()), device=device)
            seen = seen[seen < len(logits_V)]
            picked = logits_V[seen]
            penalty = params.repetition_penalty
            logits_V[seen] = torch.where(picked > 0, picked / penalty, picked * penalty)
        if self._counts:
            used = torch.tensor(list(self._counts), device=device)
            counts = torch.tensor(list(self._counts.values()), device=device).to(logits_V)
            logits_V[used] -= params.presence_penalty + params.frequency_penalty * counts
        return logits_V

    def accept(self, token: int, logits_V: Tensor) -> None:
        self._output.append(token)
        self._counts[token] += 1

    def fork(self) -> _State:
        return _State(self._params, self._prompt, list(self._output))

    def rollback(self, count: int) -> None:
        for _ in range(count):
            token = self._output.pop()
            self._counts[token] -= 1
            if not self._counts[token]:
                del self._counts[token]
