"""Forbids runs of tokens: the last of a run, where the output ends with the others.

Paper   none: Hugging Face's bad_words_ids
Idea    Before each draw the output's end is compared with each run but its last token, whose logit is then -inf.
Trades  Words that never come, at the price of the same word in other tokens, which nobody forbade.
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
class BadWords:
    """Applies SamplingParams.bad_words_ids."""

    card: ClassVar[Card] = Card(slot="processors", exact="bits", paper="none: Hugging Face's bad_words_ids")

    def init(
        self, params: SamplingParams, tokens: Sequence[int], prompt_len: int, eos: Sequence[int]
    ) -> _State | None:
        return _State(params.bad_words_ids, list(tokens[prompt_len:])) if params.bad_words_ids else None


class _State:
    def __init__(self, runs: Sequence[tuple[int, ...]], output: list[int]) -> None:
        self._runs, self._output = runs, output

    def apply(self, logits_V: Tensor) -> Tensor:
        last = [run[-1] for run in self._runs if self._ends_with(run[:-1])]
        return logits_V.index_fill(
            0, torch.tensor(last, dtype=torch.long, device=logits_V.device), -torch.inf
        )

    def _ends_with(self, tokens: tuple[int, ...]) -> bool:
        return not tokens or tuple(self._output[-len(tokens) :]) == tokens

    def accept(self, token: int, logits_V: Tensor) -> None:
        self._output.append(token)

    def fork(self) -> _State:
        return _State(self._runs, list(self._output))

    def rollback(self, count: int) -> None:
        del self._output[len(self._output) - count :]
