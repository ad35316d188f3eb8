"""Slot `drafter`: who guesses the next tokens. Guesses are checked: they change how fast tokens come, not which.

Add one: a file here with a frozen dataclass that has `card` and `start`, and a line in the index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from headrace.slots import Card, Slot


class LiveDrafter(Protocol):
    """A drafter at work for one engine. What it remembers of a sequence, it can make again from the tokens."""

    def propose(self, seq: int, tokens: Sequence[int], room: int) -> tuple[int, ...]:
        """At most `room` (1 or more) tokens that may follow `tokens`, all that the sequence has; () for no idea.

        A sequence's tokens only ever grow while it lives. One that was never seen may be of any length: a fork is.
        """

    def forget(self, seq: int) -> None:
        """The sequence has ended, or none was ever proposed for it."""


class Auxiliary(Protocol):
    """A second model, with keys and values of its own (headrace/auxiliary.py)."""

    def greedy(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        """What it would continue these tokens with, at most `count` of them: fewer where its context ends."""
        ...


Open = Callable[[str], Auxiliary]
"""A model in the box, or a folder -> the model, loaded beside the engine's own. Raises ConfigError if it does not share
the vocabulary, or there is no memory for it."""


class Drafter(Protocol):
    """How tokens are guessed."""

    card: ClassVar[Card]

    def start(self, open_model: Open) -> LiveDrafter:
        """A drafter that has seen nothing."""


SLOT = Slot(
    name="drafter",
    asks="who guesses tokens, to be checked many at once",
    index={
        "copyspec": "headrace.speculate.drafters.copyspec:CopySpec",
        "draft_model": "headrace.speculate.drafters.draft_model:DraftModel",
    },
    default="",
)
