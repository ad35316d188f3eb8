"""Strategies on a made-up task whose odds are known: who finds more right answers for the same tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from headrace.errors import ConfigError
from headrace.search.answer import Answer, Branch, Cost, Extract, Growth, Scorer
from headrace.search.choose import softmax
from headrace.search.strategies import SLOT
from headrace.search.strategies.rebase import shares

STEPS, RIGHT = 5, 0.55
"""Each of five steps is right with this chance, and a wrong one is never made good."""


class Chain:
    """A session whose steps are one token each: 1 if right, 0 if wrong."""

    def __init__(self, seed: int, budget: int = 10**6, right: float = RIGHT) -> None:
        self.root, self.cost = Branch(), Cost()
        self._draw, self._budget, self._right = random.Random(seed), budget, right
        self.widest = 0

    @property
    def exhausted(self) -> bool:
        return self.cost.new_tokens >= self._budget

    def grow(self, branches: Sequence[Branch], *, whole: bool = False) -> Growth:
        """Wants nothing of an engine."""
        yield from ()
        self.widest = max(self.widest, sum(not branch.done for branch in branches))
        return [self._grown(branch, whole) for branch in branches]

    def _grown(self, branch: Branch, whole: bool) -> Branch:
        while not branch.done and not self.exhausted:
            self.cost.new_tokens += 1
            tokens = (*branch.tokens, int(self._draw.random() < self._right))
            text = "".join(map(str, tokens))
            done = len(tokens) == STEPS
            branch = Branch(tokens, text, len(tokens), 0.0, done, done)
            if not whole:
                break
        return branch


class Fine(Chain):
    """Every step is right, and no two are the same."""

    def _grown(self, branch: Branch, whole: bool) -> Branch:
        self.cost.new_tokens += 1
        tokens = (*branch.tokens, self.cost.new_tokens)
        done = len(tokens) == STEPS
        return Branch(tokens, "1" * len(tokens), len(tokens), 0.0, done, done)


def search(spec: str, session: Chain, score: Scorer | None, extract: Extract | None) -> Answer:
    """What is found in such a session, which needs no engine."""
    with pytest.raises(StopIteration) as end:
        next(SLOT.make(spec).search(session, score, extract))
    answer = end.value.value
    assert isinstance(answer, Answer)
    return answer


def knowing(errs: float = 0.0, seed: int = 0) -> Scorer:
    """Says whether all is right so far; the opposite, `errs` of the time."""
    draw = random.Random(seed)
    return lambda texts: [0.95 if ("0" not in text) != (draw.random() < errs) else 0.05 for text in texts]


def unknowing(seed: int) -> Scorer:
    draw = random.Random(seed)
    return lambda texts: [draw.choice([0.05, 0.95]) for _ in texts]


def is_right(answer: Answer) -> bool:
    return answer.text == "1" * STEPS


def accuracy(spec: str, budget: int, score: Callable[[int], Scorer], runs: int = 400):
    """Share of right answers, and tokens per run."""
    right = tokens = 0
    for seed in range(runs):
        session = Chain(seed, budget)
        right += is_right(search(spec, session, score(seed), None))
        tokens += session.cost.new_tokens
    return right / runs, tokens / runs


def test_particles_beat_best_of_n_for_the_same_tokens() -> None:
    """A scorer that errs one time in ten. Four whole answers beside four particles."""
    plain, tokens = accuracy("best_of_n:n=4", 4 * STEPS, lambda seed: knowing(0.1, seed))
    filtered, same = accuracy("particle:n=4", 4 * STEPS, lambda seed: knowing(0.1, seed))
    assert tokens == same == 4 * STEPS
    assert filtered > plain + 0.15


def test_a_star_needs_fewer_tokens() -> None:
    filtered, tokens = accuracy("particle:n=8", 10**6, lambda seed: knowing())
    starred, fewer = accuracy("a_star:k=3", 10**6, lambda seed: knowing())
    assert starred >= filtered - 0.02 and fewer < 0.7 * tokens


def test_a_star_goes_straight_where_all_ways_are_right() -> None:
    """Equals are many where a scorer only says yes or no: the deepest of them goes on, not all of them in turn."""
    session = Fine(0)
    assert is_right(search("a_star:k=3", session, lambda texts: [0.9] * len(texts), None))
    assert session.cost.new_tokens == 3 * STEPS


def test_a_star_queues_nothing_twice() -> None:
    """A branch that is grown again often gives what it gave before: scored once, and not tried as if it were new."""
    shown: list[str] = []

    def score(texts: Sequence[str]) -> list[float]:
        assert texts
        shown.extend(texts)
        return knowing()(texts)

    for seed in range(20):
        shown.clear()
        search("a_star:k=2", Chain(seed, right=0.2), score, None)
        assert len(set(shown)) == len(shown)


def test_rebase_beats_best_of_n() -> None:
    plain, _ = accuracy("best_of_n:n=4", 4 * STEPS, lambda seed: knowing(0.1, seed))
    shared, _ = accuracy("rebase:width=4", 4 * STEPS, lambda seed: knowing(0.1, seed))
    assert shared > plain + 0.1


@pytest.mark.parametrize("spec", ["best_of_n:n=4", "particle:n=4", "rebase:width=4", "a_star:k=2"])
def test_a_scorer_that_knows_nothing_is_worth_nothing(spec: str) -> None:
    """As often right as one sample is: the gain is the scorer's, not the strategy's."""
    found, _ = accuracy(spec, 40, unknowing)
    assert abs(found - RIGHT**STEPS) < 0.05


def test_particles_with_equal_scores_are_independent_samples() -> None:
    """In law: each particle is right as often as a sample."""
    right = 0
    for seed in range(300):
        answer = search("particle:n=4", Chain(seed), lambda texts: [0.5] * len(texts), None)
        right += sum(branch.text == "1" * STEPS for branch in answer.branches)
    assert abs(right / 1200 - RIGHT**STEPS) < 0.03


def test_votes() -> None:
    answer = search("self_consistency:n=9", Chain(3, right=0.9), None, lambda text: text)
    assert is_right(answer) and answer.score == sum(b.text == answer.text for b in answer.branches) / 9
    weighted = search("self_consistency:n=9", Chain(3, right=0.5), knowing(), lambda text: text)
    texts = [branch.text for branch in weighted.branches]
    assert is_right(weighted) == ("1" * STEPS in texts)
    only = search(
        "self_consistency:n=40", Chain(1), None, lambda text: "yes" if text == "1" * STEPS else None
    )
    assert is_right(only) and only.score == 1.0, "who says nothing has no vote"


def test_rebase_keeps_its_width() -> None:
    session = Chain(2)
    search("rebase:width=6", session, knowing(0.2), None)
    assert session.widest == 6
    assert shares([0.9, 0.1, 0.9], 6, 0.2) == [3, 0, 3]
    assert shares([0.5] * 4, 6, 0.2) == [2, 2, 1, 1]
    assert shares([0.0, 1.0], 5, 1e-3) == [0, 5]
    for width in range(1, 20):
        assert sum(shares([0.3, 0.6, 0.1, 0.6], width, 0.3)) == width


def test_a_budget_ends_a_search_with_what_there_is() -> None:
    for name in ("best_of_n", "particle", "rebase", "a_star"):
        session = Chain(1, budget=7)
        answer = search(name, session, knowing(), None)
        assert session.cost.new_tokens == 7 and answer.branches


@pytest.mark.parametrize("name", ["best_of_n", "particle", "rebase", "a_star"])
def test_scores_that_are_none(name: str) -> None:
    for score, match in (
        (None, "needs a scorer"),
        (lambda texts: [1.5] * len(texts), "0 to 1"),
        (lambda texts: [0.5] * (len(texts) + 1), "one each"),
        (lambda texts: [float("nan")] * len(texts), "0 to 1"),
    ):
        with pytest.raises(ConfigError, match=match):
            search(name, Chain(0), score, None)


def test_a_vote_needs_something_to_compare() -> None:
    with pytest.raises(ConfigError, match="extract"):
        search("self_consistency", Chain(0), None, None)
    with pytest.raises(ConfigError, match="found nothing"):
        search("self_consistency", Chain(0), None, lambda text: None)


@pytest.mark.parametrize(
    "spec",
    [
        "best_of_n:n=0",
        "particle:temperature=0",
        "rebase:width=0",
        "a_star:k=0",
        "a_star:step_cost=-1",
        "beam",
    ],
)
def test_options_that_are_none(spec: str) -> None:
    with pytest.raises(ConfigError):
        SLOT.make(spec)


def test_softmax() -> None:
    assert softmax([0.0, 0.0]) == [0.5, 0.5] and softmax([1000.0, 0.0])[0] == 1.0
