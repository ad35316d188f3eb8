"""Chooses the token as if nobody had guessed; a guess is right if it is that token.

Paper   none: https://arxiv.org/abs/2211.17192 (speculative decoding) for temperature 0, and the same draw above it
Idea    The draw of a position depends on the seed and the position alone, so the token that comes without drafts is
        known once its logits are. Drafts then change nothing but the time, bit for bit.
Trades  A guess x is right with the probability p(x) that the model gives it: the most that can be had for guesses that
        are certain, such as copies. Guesses that were drawn have more to gain from `rejection`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from headrace.sample import draw
from headrace.slots import Card
from headrace.types import Guesses, Uniform

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SampleMatch:
    """For any drafter."""

    card: ClassVar[Card] = Card(slot="verifier", exact="bits", paper="https://arxiv.org/abs/2211.17192")
    laws: ClassVar[bool] = False

    def choose(self, logits_V: Tensor, guesses: Guesses, uniform: Uniform) -> int:
        """See the contract."""
        return draw.choose(logits_V, uniform("token"))
