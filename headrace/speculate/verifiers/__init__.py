"""Slot `verifier`: which token comes where some were guessed. The text keeps its law, whoever guessed.

Add one: a file here with a frozen dataclass that has `card` and `choose`, and a line in the index.

A draft is walked from its root: where the token that was chosen is one of the guesses, the walk goes on below it. With
temperature 0 the likeliest token comes, and nobody is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from headrace.slots import Card, Slot
from headrace.types import Guesses, Uniform

if TYPE_CHECKING:
    from torch import Tensor


class Verifier(Protocol):
    """Chooses tokens. Holds nothing: what it draws with is handed to it."""

    card: ClassVar[Card]
    laws: ClassVar[bool]
    """Whether it needs guesses that were drawn, with the law that they were drawn from."""

    def choose(self, logits_V: Tensor, guesses: Guesses, uniform: Uniform) -> int:
        """The token at one place of a sequence: its law is softmax(logits_V), whatever the guesses are.

        logits_V: after every processor, float32 or wider; -inf is forbidden. uniform: numbers in [0, 1) of this place,
        one per purpose; "token" is the draw of an engine that guesses nothing. guesses.law_V is None for those that
        were not drawn (tokens that a grammar forces): they do not depend on any number of this place. Several that were
        drawn are in the order of their draws, without putting back.
        """


SLOT = Slot(
    name="verifier",
    asks="which token comes where some were guessed",
    index={
        "sample_match": "headrace.speculate.verifiers.sample_match:SampleMatch",
        "rejection": "headrace.speculate.verifiers.rejection:Rejection",
        "rsd": "headrace.speculate.verifiers.rsd:Rsd",
    },
    default="sample_match",
)
