"""Slot `draft-budget`: how many guessed tokens a step may check.

Add one: a file here with a frozen dataclass that has `card` and `start`, and a line in the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

from headrace.slots import Card, Slot


class Checked(NamedTuple):
    """What came of one sequence's guess."""

    seq: int
    drafted: int
    """Tokens after each other: of a tree its levels."""
    accepted: int
    """Of these, from the first on."""
    rows: int
    """That it took: of a tree more than its levels."""


class LiveBudget(Protocol):
    """A budget at work for one engine. It may change how long things take, never what comes out."""

    def room(self, seq: int, rows: int, sequences: int) -> int:
        """Most tokens that are worth guessing for this sequence, 0 for none, in a step that has `rows` rows already and
        from which `sequences` sequences get a token."""

    def observe(self, rows: int, seconds: float, checked: Sequence[Checked]) -> None:
        """A step of so many rows took this long, from its plan to its tokens."""

    def forget(self, seq: int) -> None:
        """The sequence has ended, or was never seen."""


class DraftBudget(Protocol):
    """How the number is found."""

    card: ClassVar[Card]

    def start(self) -> LiveBudget:
        """A budget that has seen nothing."""


SLOT = Slot(
    name="draft-budget",
    asks="how many guessed tokens a step checks",
    index={
        "auto": "headrace.speculate.budgets.auto:Auto",
        "fixed": "headrace.speculate.budgets.fixed:Fixed",
    },
    default="auto",
)
