"""What searches are made of: partial answers, what scores them, what they cost, and the one that is given."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from headrace.errors import ConfigError
from headrace.params import SamplingParams
from headrace.text.reply import Output

Scorer = Callable[[Sequence[str]], Sequence[float]]
"""Answers, partial or whole -> for each how likely it is, or leads to, a right one: 0 to 1."""
Extract = Callable[[str], str | None]
"""A whole answer -> what it says, for comparing with others; None if it says nothing."""


@dataclass(frozen=True)
class Branch:
    """A partial answer. Never changes: growing it makes another, and any number may grow from one."""

    tokens: tuple[int, ...] = ()
    text: str = ""
    steps: int = 0
    logprob: float = 0.0
    """Of all its tokens, as the model has them."""
    done: bool = False
    """It has ended, by itself or at the last step that is allowed."""
    ended: bool = False
    """By itself."""


@dataclass
class Cost:
    """What a search has taken so far."""

    new_tokens: int = 0
    """Generated."""
    prompt_tokens: int = 0
    """Of all calls together."""
    cached_tokens: int = 0
    """Those of them that were not computed again."""
    scored: int = 0
    """Answers that the scorer was shown."""


@dataclass(frozen=True)
class Answer:
    """What a search gives."""

    text: str
    score: float
    """The scorer's, or the share of votes."""
    branches: tuple[Branch, ...] = field(repr=False)
    """All that it chose from."""
    cost: Cost


@dataclass(frozen=True)
class Call:
    """What a search wants generated before it goes on: token ids, and how, one each."""

    prompts: list[list[int]]
    params: list[SamplingParams]


Growth = Generator[Call, list[Output], list[Branch]]
"""What is wanted for some branches -> the branches, grown."""
Search = Generator[Call, list[Output], Answer]
"""A search under way: it waits at what it wants, and ends with what it found. `rounds.answers` runs any number."""


def scores_of(score: Scorer, branches: Sequence[Branch], cost: Cost) -> list[float]:
    """The scorer's word on each. Raises ConfigError if one is not between 0 and 1."""
    if not branches:
        return []
    found = [float(value) for value in score([branch.text for branch in branches])]
    if len(found) != len(branches):
        raise ConfigError(
            f"the scorer gave {len(found)} scores for {len(branches)} answers: one each is needed"
        )
    wrong = next((value for value in found if not 0 <= value <= 1), None)
    if wrong is not None:
        raise ConfigError(f"the scorer gave {wrong}: scores are from 0 to 1 (for a logit, its sigmoid)")
    cost.scored += len(found)
    return found
