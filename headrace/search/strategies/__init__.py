"""Slot `search`: how a budget of tokens is spent on many answers to one prompt, and which one is given.

Add one: a file here with a frozen dataclass that has `card` and `search`, and a line in the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from headrace.search.answer import Branch, Cost, Extract, Growth, Scorer, Search
from headrace.slots import Card, Slot


class Grows(Protocol):
    """What a strategy sees of a session (headrace/search/session.py): branches, and what is left to spend."""

    root: Branch
    cost: Cost

    @property
    def exhausted(self) -> bool: ...

    def grow(self, branches: Sequence[Branch], *, whole: bool = False) -> Growth:
        """Each by one step, or to its end; what is done, or cannot be paid, stays as it is."""
        ...


class Strategy(Protocol):
    """One way to search."""

    card: ClassVar[Card]

    def search(self, session: Grows, score: Scorer | None, extract: Extract | None) -> Search:
        """Grows branches (`yield from session.grow(...)`) until they are done or the budget is spent, and chooses.
        Raises ConfigError if it needs a scorer, or something to compare answers by, and has none."""


SLOT = Slot(
    name="search",
    asks="how a budget is spent on many answers",
    index={
        "best_of_n": "headrace.search.strategies.best_of_n:BestOfN",
        "self_consistency": "headrace.search.strategies.self_consistency:SelfConsistency",
        "particle": "headrace.search.strategies.particle:Particle",
        "rebase": "headrace.search.strategies.rebase:Rebase",
        "a_star": "headrace.search.strategies.a_star:AStar",
    },
    default="",
)
