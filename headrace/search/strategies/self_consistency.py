"""Samples n whole answers and gives the one that most of them agree on.

Paper   https://arxiv.org/abs/2203.11171 (self-consistency)
Idea    Right reasoning leads to one result by many ways, wrong reasoning to many. Marginalise over the ways: vote.
Trades  Needs no scorer, but something to compare answers by; with a scorer, votes are weighted by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headrace.errors import ConfigError
from headrace.search.answer import Answer, Extract, Scorer, Search, scores_of
from headrace.search.choose import votes
from headrace.search.strategies import Grows
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class SelfConsistency:
    """A vote of n."""

    card: ClassVar[Card] = Card(slot="search", exact="law", paper="https://arxiv.org/abs/2203.11171")
    n: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.n <= 4096:
            raise ValueError(f"n={self.n} must be between 1 and 4096")

    def search(self, session: Grows, score: Scorer | None, extract: Extract | None) -> Search:
        """See the contract."""
        if extract is None:
            raise ConfigError("self_consistency needs to know what an answer says: give extract")
        branches = yield from session.grow([session.root] * self.n, whole=True)
        weights = [1.0] * len(branches) if score is None else scores_of(score, branches, session.cost)
        found = votes(branches, weights, extract)
        if not found:
            raise ConfigError("self_consistency: extract found nothing in any answer: is it right for them?")
        winner = max(found, key=lambda said: found[said])
        first = next(branch.text for branch in branches if extract(branch.text) == winner)
        return Answer(first, found[winner] / sum(found.values()), tuple(branches), session.cost)
