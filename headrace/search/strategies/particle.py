"""Particles: after each step, answers are drawn anew from themselves, those that look right more often.

Paper   https://arxiv.org/abs/2502.01618 (particle filtering for inference-time scaling)
Idea    The scorer's odds for a partial answer are a likelihood, the model the prior: a filter follows the posterior.
        After each step every particle has weight softmax(logit(score) / temperature), and N are drawn with replacement.
        Weights are not multiplied up: a score is of the whole answer so far.
Trades  Explores more than beams do, as nothing is ever ruled out; all particles wait for the slowest step.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from typing import ClassVar

from headrace.search.answer import Extract, Scorer, Search, scores_of
from headrace.search.choose import best, logit, needed, softmax, uniform
from headrace.search.strategies import Grows
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Particle:
    """A filter."""

    card: ClassVar[Card] = Card(slot="search", exact="law", paper="https://arxiv.org/abs/2502.01618")
    n: int = 8
    """Particles."""
    temperature: float = 1.0
    """Of the weights: above 1 they differ less."""
    seed: int = 0
    """Of the drawing."""

    def __post_init__(self) -> None:
        if not 1 <= self.n <= 4096 or not self.temperature > 0:
            raise ValueError(f"n={self.n} must be between 1 and 4096, temperature={self.temperature} above 0")

    def search(self, session: Grows, score: Scorer | None, extract: Extract | None) -> Search:
        """See the contract."""
        score = needed(score, "particle")
        particles, step = [session.root] * self.n, 0
        while True:
            particles = yield from session.grow(particles)
            scores = scores_of(score, particles, session.cost)
            if session.exhausted or all(particle.done for particle in particles):
                return best(particles, scores, session.cost)
            weights = softmax([logit(value) / self.temperature for value in scores])
            sums = list(itertools.accumulate(weights))
            drawn = [bisect.bisect(sums, uniform(self.seed, step, i) * sums[-1]) for i in range(self.n)]
            particles = [particles[min(place, self.n - 1)] for place in drawn]
            step += 1
