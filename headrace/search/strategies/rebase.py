"""REBASE: a tree whose width is shared out among its newest nodes in proportion to e^(score / temperature).

Paper   https://arxiv.org/abs/2408.00724 (reward balanced search)
Idea    Breadth-first: each round, nodes that are not done get ceil(width * share) children each, the best first, until
        the width is used up. Answers that are done take their place out of the width. In the end, a vote weighted by
        scores, or the best where answers cannot be compared.
Trades  Between beams, which keep few, and sampling, which keeps all; no rollouts as tree search by playing has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from headrace.search.answer import Answer, Branch, Extract, Scorer, Search, scores_of
from headrace.search.choose import best, needed, votes
from headrace.search.strategies import Grows
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Rebase:
    """A tree of a constant width."""

    card: ClassVar[Card] = Card(slot="search", exact="law", paper="https://arxiv.org/abs/2408.00724")
    width: int = 16
    temperature: float = 0.2
    """Of the shares."""

    def __post_init__(self) -> None:
        if not 1 <= self.width <= 4096 or not self.temperature > 0:
            raise ValueError(
                f"width={self.width} must be between 1 and 4096, temperature={self.temperature} above 0"
            )

    def search(self, session: Grows, score: Scorer | None, extract: Extract | None) -> Search:
        """See the contract."""
        score = needed(score, "rebase")
        done: list[tuple[Branch, float]] = []
        frontier = [session.root] * self.width
        while True:
            grown = yield from session.grow(frontier)
            scores = scores_of(score, grown, session.cost)
            pairs = list(zip(grown, scores, strict=True))
            done += [pair for pair in pairs if pair[0].done]
            open_ = [pair for pair in pairs if not pair[0].done]
            width = self.width - len(done)
            if session.exhausted or not open_ or width <= 0:
                return _chosen(done or open_, extract, session)
            copies = shares([value for _, value in open_], width, self.temperature)
            frontier = [
                branch for (branch, _), count in zip(open_, copies, strict=True) for _ in range(count)
            ]


def shares(scores: Sequence[float], width: int, temperature: float) -> list[int]:
    """How many children each gets, `width` in all: from the best on, each its part of what is left, rounded up."""
    weights = [math.exp((value - max(scores)) / temperature) for value in scores]
    copies, left, rest = [0] * len(scores), width, math.fsum(weights)
    for place in sorted(range(len(scores)), key=lambda i: -scores[i]):
        copies[place] = min(left, math.ceil(left * weights[place] / rest - 1e-9)) if rest > 0 else 0
        left, rest = left - copies[place], rest - weights[place]
    return copies


def _chosen(pairs: Sequence[tuple[Branch, float]], extract: Extract | None, session: Grows) -> Answer:
    branches, scores = [branch for branch, _ in pairs], [value for _, value in pairs]
    if extract is None:
        return best(branches, scores, session.cost)
    found = votes(branches, scores, extract)
    if not found:
        return best(branches, scores, session.cost)
    winner = max(found, key=lambda said: found[said])
    agreeing = [value if extract(branch.text) == winner else -1.0 for branch, value in pairs]
    given = best(branches, agreeing, session.cost)
    return Answer(given.text, found[winner] / (sum(found.values()) or 1.0), tuple(branches), session.cost)
