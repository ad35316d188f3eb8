"""Slot `drafter`: who guesses the next tokens. Guesses are checked: they change how fast tokens come, not which.

Add one: a file here with a frozen dataclass that has `card` and `start`, and a line in the index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from headrace.slots import Card, Slot
from headrace.speculate.second import Open
from headrace.speculate.tree import Draft
from headrace.types import Sequence

if TYPE_CHECKING:
    from torch import Tensor


class LiveDrafter(Protocol):
    """A drafter at work for one engine. What it remembers of a sequence, it can make again from the tokens."""

    def propose(self, seq: Sequence, room: int, depth: int) -> Draft:
        """What may follow all that the sequence has: at most `room` tokens, `depth` after each other, both 1 or more.
        Only looks at the sequence.

        A sequence's tokens only ever grow while it lives. One that was never seen may be of any length: a fork is.
        """

    def learn(self, seq: Sequence, tokens: tuple[int, ...], logits_RV: Tensor) -> None:
        """What the model thinks follows these tokens of the sequence: its last one, then the guesses of a draft, right
        or wrong. logits_RV: before any processor; overwritten by the next step."""

    def forget(self, seq: int) -> None:
        """The sequence has ended, or none was ever proposed for it."""


class Drafter(Protocol):
    """How tokens are guessed."""

    card: ClassVar[Card]

    def start(self, open_model: Open, laws: bool) -> LiveDrafter:
        """A drafter that has seen nothing. laws: whoever checks needs guesses that were drawn, and their laws; only one
        whose card gives `draft_law` is asked."""


SLOT = Slot(
    name="drafter",
    asks="who guesses tokens, to be checked many at once",
    index={
        "copyspec": "headrace.speculate.drafters.copyspec:CopySpec",
        "recycle": "headrace.speculate.drafters.recycle:Recycle",
        "draft_model": "headrace.speculate.drafters.draft_model:DraftModel",
        "draft_tree": "headrace.speculate.drafters.draft_tree:DraftTree",
    },
    default="",
)
