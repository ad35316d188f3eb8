"""Samples n whole answers and gives the one that the scorer likes best.

Paper   https://arxiv.org/abs/2009.01325 (choosing by a reward model); https://arxiv.org/abs/2407.21787 (large n)
Idea    A model that is right now and then is right at least once in n; a scorer that knows which makes it right.
Trades  Every answer is paid to its end, however early it went wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headrace.search.answer import Extract, Scorer, Search
from headrace.search.choose import needed, scored_best
from headrace.search.strategies import Grows
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    """n answers at once."""

    card: ClassVar[Card] = Card(slot="search", exact="law", paper="https://arxiv.org/abs/2009.01325")
    n: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.n <= 4096:
            raise ValueError(f"n={self.n} must be between 1 and 4096")

    def search(self, session: Grows, score: Scorer | None, extract: Extract | None) -> Search:
        """See the contract."""
        score = needed(score, "best_of_n")
        branches = yield from session.grow([session.root] * self.n, whole=True)
        grown = [branch for branch in branches if branch.tokens] or branches
        return scored_best(grown, score, session.cost)
