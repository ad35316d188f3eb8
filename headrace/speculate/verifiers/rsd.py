"""Offers the guesses of a place one after the other; what each refusal leaves of the law is what the next is offered.

Paper   https://arxiv.org/abs/2402.14160 (recursive speculative decoding, RSD); https://arxiv.org/abs/2305.09781
        (SpecInfer, many guesses of one place)
Idea    Guesses x1, x2, ... of one place were drawn from q without putting back. x1 is accepted with min(1, p / q). If
        it is refused, p becomes max(0, p - q), q loses x1, both are scaled to 1, and x2 has its turn; if all are, the
        token comes from what is left of p. Whatever q is, it follows p.
Trades  As `rejection`, of which it is the case of one guess, and right more often: a second guess is another chance.
Differs Guesses that are lacking for want of room are the last ones drawn, so the law holds. Tokens that a grammar
        forces were not drawn, and are checked by sample matching.
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
class Rsd:
    """Any number of guesses per place."""

    card: ClassVar[Card] = Card(
        slot="verifier",
        exact="law",
        paper="https://arxiv.org/abs/2402.14160",
        needs=(
            (
                "draft_law",
                "it weighs guesses by the law that they were drawn from, and this drafter draws nothing (use "
                "--verifier sample_match, or --drafter draft_tree)",
            ),
        ),
    )
    laws: ClassVar[bool] = True

    def choose(self, logits_V: Tensor, guesses: Guesses, uniform: Uniform) -> int:
        """See the contract."""
        if not guesses.tokens or guesses.law_V is None:
            return draw.choose(logits_V, uniform("token"))
        p_V, q_V = logits_V.double().softmax(-1), guesses.law_V
        for turn, guess in enumerate(guesses.tokens):
            if uniform(f"accept{turn}") * float(q_V[guess]) < float(p_V[guess]):
                return guess
            p_V = draw.residual(p_V, q_V)
            q_V = draw.without(q_V, guess)
        return draw.choose(p_V.log(), uniform("residual"))
