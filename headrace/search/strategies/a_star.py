"""A*: always grows the partial answer that is cheapest so far plus what the scorer expects it still to cost.

Paper   https://arxiv.org/abs/2505.13672 (A*-decoding)
Idea    f = g + h, h = 1 - score of the answer so far; g adds `step_cost` for each step. The cheapest is taken from the
        frontier and grown `k` ways, and put back for `again` more: all of its ways may have been wrong. What has been
        seen is not queued again, and of equals the deepest goes first. When the cheapest is a whole answer, it is
        given: with a scorer that knows, hardly anything else is paid for.
Trades  Far fewer tokens than a population that always grows as a whole; one step after the other, k rows at a time.
Differs The paper leaves g open (no code is published); here it is a constant per step, 0 for best-first.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import ClassVar

from headrace.search.answer import Answer, Branch, Extract, Scorer, Search, scores_of
from headrace.search.choose import best, needed
from headrace.search.strategies import Grows
from headrace.slots import Card

_Waiting = tuple[float, int, int, float, Branch]
"""Cost; of equals the deepest first, then the oldest; the scorer's word."""


@dataclass(frozen=True, kw_only=True)
class AStar:
    """Best first."""

    card: ClassVar[Card] = Card(slot="search", exact="law", paper="https://arxiv.org/abs/2505.13672")
    k: int = 4
    """Ways in which a branch is grown."""
    step_cost: float = 0.0
    again: float = 0.1
    """What growing a branch once more costs."""
    max_expansions: int = 1000

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 4096 or self.step_cost < 0 or not self.again > 0 or self.max_expansions < 1:
            raise ValueError(
                f"k={self.k} must be between 1 and 4096, step_cost={self.step_cost} not below 0, again={self.again} "
                "above 0"
            )

    def search(self, session: Grows, score: Scorer | None, extract: Extract | None) -> Search:
        """See the contract."""
        score = needed(score, "a_star")
        order = itertools.count()
        frontier: list[_Waiting] = [(0.0, 0, next(order), 0.0, session.root)]
        known = {session.root.tokens}
        ends: list[tuple[Branch, float]] = []
        for _ in range(self.max_expansions):
            cost, depth, _, value, branch = heapq.heappop(frontier)
            if branch.ended:
                return Answer(branch.text, value, (branch, *(end for end, _ in ends)), session.cost)
            heapq.heappush(frontier, (cost + self.again, depth, next(order), value, branch))
            grown = yield from session.grow([branch] * self.k)
            fresh = {new.tokens: new for new in grown if new.tokens not in known}
            known.update(fresh)
            scores = scores_of(score, list(fresh.values()), session.cost)
            for new, value in zip(fresh.values(), scores, strict=True):
                if new.done:
                    ends.append((new, value))
                if new.ended or not new.done:
                    total = self.step_cost * new.steps + 1 - value
                    heapq.heappush(frontier, (total, -new.steps, next(order), value, new))
            if session.exhausted:
                break
        waiting = [(branch, value) for _, _, _, value, branch in frontier]
        pairs = ends or waiting or [(session.root, 0.0)]
        return best([branch for branch, _ in pairs], [value for _, value in pairs], session.cost)
