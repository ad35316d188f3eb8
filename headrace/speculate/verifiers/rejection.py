"""Accepts a guess with probability min(1, p / q); where it is refused, draws from what p has more than q.

Paper   https://arxiv.org/abs/2211.17192 (speculative decoding); https://arxiv.org/abs/2302.01318 (speculative sampling)
Idea    A guess x was drawn from q, and p is the model's law. Accepted so, x comes with probability min(p(x), q(x)); the
        rest of p, max(0, p - q), is drawn from otherwise. Together that is p. A guess is right with probability
        sum_x min(p(x), q(x)), where sample matching has sum_x p(x) q(x).
Trades  The text keeps its law, not its bits: the token of a seed depends on whether something was guessed in its place,
        and so on what else runs. At temperature 0 it is the plain engine's.
Differs Tokens that a grammar forces were not drawn, and are checked by sample matching.
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
class Rejection:
    """One guess per place."""

    card: ClassVar[Card] = Card(
        slot="verifier",
        exact="law",
        paper="https://arxiv.org/abs/2211.17192",
        needs=(
            (
                "draft_law",
                "it weighs a guess by the law that it was drawn from, and this drafter draws nothing (use "
                "--verifier sample_match, or --drafter draft_model)",
            ),
        ),
        breaks=(("drawn_tree", "it weighs one guess per place, and here are several (use --verifier rsd)"),),
    )
    laws: ClassVar[bool] = True

    def choose(self, logits_V: Tensor, guesses: Guesses, uniform: Uniform) -> int:
        """See the contract."""
        if not guesses.tokens or guesses.law_V is None:
            return draw.choose(logits_V, uniform("token"))
        assert len(guesses.tokens) == 1, "one guess per place"
        p_V, q_V, guess = logits_V.double().softmax(-1), guesses.law_V, guesses.tokens[0]
        if uniform("accept") * float(q_V[guess]) < float(p_V[guess]):
            return guess
        return draw.choose(draw.residual(p_V, q_V).log(), uniform("residual"))
