"""Steps that strategies share: which of some branches is given, and how a number of copies is spread."""

from __future__ import annotations

import hashlib
import math
import struct
from collections import defaultdict
from collections.abc import Sequence

from headrace.errors import ConfigError
from headrace.search.answer import Answer, Branch, Cost, Extract, Scorer, scores_of


def needed(score: Scorer | None, who: str) -> Scorer:
    """The scorer. Raises ConfigError if there is none."""
    if score is None:
        raise ConfigError(f"{who} needs a scorer: a function from answers to numbers between 0 and 1")
    return score


def best(branches: Sequence[Branch], scores: Sequence[float], cost: Cost) -> Answer:
    """The branch with the highest score, those that have ended before all others; the first of equals."""
    place = max(range(len(branches)), key=lambda i: (branches[i].ended, scores[i], -i))
    return Answer(branches[place].text, scores[place], tuple(branches), cost)


def scored_best(branches: Sequence[Branch], score: Scorer, cost: Cost) -> Answer:
    """The same, scored here."""
    return best(branches, scores_of(score, branches, cost), cost)


def votes(branches: Sequence[Branch], weights: Sequence[float], extract: Extract) -> dict[str, float]:
    """What the branches say -> the weight of those that say it, in the order in which it is first said."""
    found: dict[str, float] = defaultdict(float)
    for branch, weight in zip(branches, weights, strict=True):
        said = extract(branch.text)
        if said is not None:
            found[said] += weight
    return found


def logit(score: float) -> float:
    """ln(s / (1 - s)), of a score kept away from 0 and 1."""
    bounded = min(max(score, 1e-6), 1 - 1e-6)
    return math.log(bounded / (1 - bounded))


def softmax(values: Sequence[float]) -> list[float]:
    """Shares that sum to one."""
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    return [weight / math.fsum(weights) for weight in weights]


def uniform(seed: int, step: int, index: int) -> float:
    """A number in [0, 1) that depends on these alone."""
    digest = hashlib.blake2b(struct.pack("<qqq", seed, step, index), digest_size=8, person=b"search").digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
