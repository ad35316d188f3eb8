"""Guesses with a smaller model of the same vocabulary: its greedy continuation.

Paper   https://arxiv.org/abs/2211.17192 (speculative decoding); https://arxiv.org/abs/2302.01318 (speculative sampling)
Idea    Most tokens are easy, and a model of a tenth of the size finds them, one after the other; the large one checks
        them all in one pass.
Trades  The small model's weights, keys and values beside the large one's, and its steps before each of the large one's.
Differs Guesses are greedy, not sampled, and checked by sample matching: accepted with the probability that the large
        model gives them, at any temperature. What sequences have in common with themselves a step ago is in the small
        model's prefix cache, in whole pages: up to a page is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from headrace.slots import Card
from headrace.speculate.drafters import Auxiliary, Open


@dataclass(frozen=True, kw_only=True)
class DraftModel:
    """A second model."""

    card: ClassVar[Card] = Card(slot="drafter", exact="bits", paper="https://arxiv.org/abs/2211.17192")
    model: str
    """A model in the box, or a folder."""
    length: int = 5
    """Most tokens of a guess."""

    def __post_init__(self) -> None:
        if not 1 <= self.length <= 64:
            raise ValueError(f"length={self.length} must be between 1 and 64")

    def start(self, open_model: Open) -> _Live:
        return _Live(open_model(self.model), self.length)


class _Live:
    def __init__(self, model: Auxiliary, length: int) -> None:
        self._model, self._length = model, length

    def propose(self, seq: int, tokens: Sequence[int], room: int) -> tuple[int, ...]:
        """See the contract."""
        return self._model.greedy(tokens, min(self._length, room))

    def forget(self, seq: int) -> None:
        """Its pages grow old in the small model's prefix cache."""
