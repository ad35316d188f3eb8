"""Draws: even, independent of everything but (seed, position, purpose), and true to the law of the logits."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from headrace.sample import draw

Draw = Callable[[int], float]
"""Position -> a number in [0, 1)."""
COUNT = 20_000
LIMIT = 5.0
"""Standard deviations of chi-square beyond which a draw is called biased: by chance, less than once in 10^6."""


def chi_square(observed: list[int], probabilities: list[float]) -> float:
    """How far counts lie from their law, in standard deviations of what chance does."""
    total = sum(observed)
    assert all(count == 0 for count, p in zip(observed, probabilities, strict=True) if p == 0), (
        "the impossible came"
    )
    pairs = [(count, total * p) for count, p in zip(observed, probabilities, strict=True) if p > 0]
    statistic = sum((count - expected) ** 2 / expected for count, expected in pairs)
    freedom = len(pairs) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def evenness(drawn: Draw, bins: int = 64) -> float:
    counts = Counter(int(drawn(position) * bins) for position in range(COUNT))
    return chi_square([counts[i] for i in range(bins)], [1 / bins] * bins)


def faithfulness(drawn: Draw, logits: torch.Tensor) -> float:
    counts = Counter(draw.choose(logits, drawn(position)) for position in range(COUNT // 4))
    law = torch.softmax(logits.double(), -1).tolist()
    return chi_square([counts[i] for i in range(len(law))], law)


def by_position(position: int) -> float:
    return draw.uniform(7, position, "token")


def by_seed(seed: int) -> float:
    return draw.uniform(seed, 7, "token")


def by_sample(index: int) -> float:
    return draw.uniform(draw.child_seed(7, index), 3, "token")


LOGITS = torch.tensor([2.0, 1.0, -torch.inf, 0.5, 0.0, -3.0, 2.5, -torch.inf])
BIASED: dict[str, Draw] = {
    "squared": lambda position: by_position(position) ** 1.1,
    "too-coarse": lambda position: int(by_position(position) * 24) / 24,
    "stuck-now-and-then": lambda position: 0.5 if position % 25 == 0 else by_position(position),
    "never-high": lambda position: by_position(position) * 0.98,
}


@pytest.mark.parametrize("drawn", [by_position, by_seed, by_sample])
def test_draws_are_even(drawn: Draw) -> None:
    assert abs(evenness(drawn)) < LIMIT
    numbers = [drawn(i) for i in range(COUNT)]
    assert 0 <= min(numbers) and max(numbers) < 1 and len(set(numbers)) == COUNT
    assert abs(statistics.fmean(numbers) - 0.5) < 5 / math.sqrt(12 * COUNT)


@pytest.mark.parametrize("drawn", [by_position, by_seed, by_sample])
def test_neighbouring_draws_know_nothing_of_each_other(drawn: Draw) -> None:
    numbers = [drawn(i) for i in range(COUNT)]
    assert abs(statistics.correlation(numbers, numbers[1:] + numbers[:1])) < 5 / math.sqrt(COUNT)


@pytest.mark.parametrize("name", BIASED)
def test_a_biased_draw_would_be_noticed(name: str) -> None:
    """The tests of evenness and of the law can fail."""
    assert evenness(BIASED[name]) > LIMIT or faithfulness(BIASED[name], LOGITS) > LIMIT


def test_choices_follow_the_law() -> None:
    assert abs(faithfulness(by_position, LOGITS)) < LIMIT
    assert abs(faithfulness(by_seed, torch.zeros(50))) < LIMIT
    assert abs(faithfulness(by_position, LOGITS.to(torch.bfloat16))) < LIMIT


def test_a_choice_from_another_law_would_be_noticed() -> None:
    counts = Counter(draw.choose(LOGITS / 1.1, by_position(i)) for i in range(COUNT // 4))
    law = torch.softmax(LOGITS.double(), -1).tolist()
    assert chi_square([counts[i] for i in range(len(law))], law) > LIMIT


def test_a_draw_depends_on_seed_position_and_purpose_alone() -> None:
    first = draw.uniform(1, 2, "token")
    random.seed(0), torch.manual_seed(0)
    assert draw.uniform(1, 2, "token") == first
    others = [
        draw.uniform(2, 2, "token"),
        draw.uniform(1, 3, "token"),
        draw.uniform(1, 2, "accept"),
        draw.uniform(2, 1, "token"),
    ]
    assert len({first, *others}) == 5
    assert draw.uniform(-(2**63), 0, "token") != draw.uniform(2**63 - 1, 0, "token")


def test_draws_stay_what_they_are() -> None:
    """A seed gives the same text after an update; change these numbers only with the version."""
    assert draw.uniform(0, 0, "token") == 0.8038911513018037
    assert draw.uniform(42, 17, "token") == 0.08696562144328424
    assert draw.child_seed(42, 3) == 5348469498021570


def test_samples_of_a_request_have_unrelated_seeds() -> None:
    assert draw.child_seed(42, 0) == 42
    seeds = [draw.child_seed(seed, index) for seed in (-5, 0, 42) for index in range(1, 129)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_ends_of_the_range_choose_allowed_tokens(dtype: torch.dtype) -> None:
    last = (2**53 - 1) / 2**53
    for allowed in ([0], [4], [2, 3], [0, 4]):
        logits = torch.full((5,), -torch.inf, dtype=dtype)
        logits[allowed] = 1.0
        assert draw.choose(logits, 0.0) == allowed[0] and draw.choose(logits, last) == allowed[-1]
    assert draw.choose(torch.tensor([0.0, -1e30, 0.0, -1e30], dtype=dtype), last) == 2


def test_choose_walks_the_tokens_in_order() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    assert [draw.choose(logits, u) for u in (0.05, 0.15, 0.29, 0.31, 0.59, 0.61, 0.99)] == [
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]
