"""Guesses with a smaller model of the same vocabulary: its own continuation.

Paper   https://arxiv.org/abs/2211.17192 (speculative decoding); https://arxiv.org/abs/2302.01318 (speculative sampling)
Idea    Most tokens are easy, and a model of a tenth of the size finds them, one after the other; the large one checks
        them all in one pass.
Trades  The small model's weights, keys and values beside the large one's, and its steps before each of the large one's.
Differs Guesses are the likeliest tokens where they are checked by sample matching: right with the probability that the
        large model gives them. For a verifier that weighs laws (`rejection`) they are drawn, with the request's
        temperature, top-k, top-p and min-p. A sequence's text is kept in the small model between its guesses, where
        its cache keeps every token: what is computed again is what it guessed wrong. Elsewhere, up to a page is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headrace.sample import draw
from headrace.slots import Card
from headrace.speculate.second import Auxiliary, Open
from headrace.speculate.tree import Draft
from headrace.types import Sequence


@dataclass(frozen=True, kw_only=True)
class DraftModel:
    """A second model."""

    card: ClassVar[Card] = Card(
        slot="drafter", exact="bits", paper="https://arxiv.org/abs/2211.17192", gives=("draft_law",)
    )
    model: str
    """A model in the box, or a folder."""
    length: int = 5
    """Most tokens of a guess."""

    def __post_init__(self) -> None:
        if not 1 <= self.length <= 64:
            raise ValueError(f"length={self.length} must be between 1 and 64")

    def start(self, open_model: Open, laws: bool) -> _Live:
        return _Live(open_model(self.model), self.length, laws)


class _Live:
    def __init__(self, model: Auxiliary, length: int, laws: bool) -> None:
        self._model, self._length, self._laws = model, length, laws

    def propose(self, seq: Sequence, room: int, depth: int) -> Draft:
        """See the contract."""
        count, params = min(self._length, room, depth), seq.request.params
        if not self._laws or params.temperature == 0:
            return Draft(self._model.greedy(seq.tokens, count))
        drawn = self._model.drawn(seq.tokens, count, params, draw.draft_seed(seq.seed))
        return Draft(drawn.tokens, laws=drawn.laws)

    def learn(self, seq: Sequence, tokens: tuple[int, ...], logits_RV: Tensor) -> None:
        """Nothing to learn."""

    def forget(self, seq: int) -> None:
        """Its pages grow old in the small model's prefix cache."""
