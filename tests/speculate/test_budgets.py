"""Budgets: drafts while they pay, and nothing else; simulated, so that time is exact."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.slots import slots
from headrace.speculate.budgets import Checked, LiveBudget
from headrace.speculate.budgets.auto import MOST_PATIENCE, MOST_ROWS, Auto, Times
from headrace.types import Request, SamplingParams
from tests.whole import models
from tests.whole.drive import collect, nothing_left

Cost = Callable[[int], float]
COSTS: dict[str, Cost] = {
    "memory-bound": lambda rows: 1 + 0.02 * rows,
    "a-tenth-each": lambda rows: 0.9 + 0.1 * rows,
    "compute-bound": lambda rows: float(rows),
    "stairs": lambda rows: 1 + (rows > 4) + 2 * (rows > 8),
}


def make(spec: str) -> LiveBudget:
    live: LiveBudget = slots()["draft-budget"].make(spec).start()
    return live


def simulate(
    budget: LiveBudget,
    cost: Cost,
    right: Callable[[int, int], float],
    sequences: int,
    steps: int,
    seed: int = 0,
) -> float:
    """Tokens per second over the second half. right(sequence, step): chance that a guess is, given those before it."""
    draw, tokens, seconds = random.Random(seed), 0, 0.0
    for step in range(steps):
        rows, checked = sequences, []
        for seq in range(sequences):
            drafted = min(budget.room(seq, rows, sequences), 16)
            rows += drafted
            accepted = 0
            while accepted < drafted and draw.random() < right(seq, step):
                accepted += 1
            if drafted:
                checked.append(Checked(seq, drafted, accepted, drafted))
        took = cost(rows)
        budget.observe(rows, took * draw.uniform(0.97, 1.03), checked)
        if step >= steps // 2:
            tokens += sequences + sum(one.accepted for one in checked)
            seconds += took
    return tokens / seconds


def best(cost: Cost, right: float, sequences: int) -> float:
    """Tokens per second with the best constant length, the same for all."""

    def rate(length: int) -> float:
        kept = sum(right**k for k in range(1, length + 1))
        return sequences * (1 + kept) / cost(sequences * (1 + length))

    return max(rate(length) for length in range(17))


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("right", [0.0, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("sequences", [1, 4])
def test_auto_is_never_slower_and_nearly_as_fast_as_the_best_length(
    cost: str, right: float, sequences: int
) -> None:
    found = simulate(make("auto"), COSTS[cost], lambda seq, step: right, sequences, 1200)
    plain = sequences / COSTS[cost](sequences)
    assert found >= 0.97 * plain, f"{found:.3f} beside {plain:.3f} without drafts"
    if cost != "stairs":  # the next stair may be worth it for all together, and for none alone
        assert found >= 0.85 * best(COSTS[cost], right, sequences)


def test_fixed_is_slower_where_guesses_are_wrong() -> None:
    """The test above can fail."""
    found = simulate(make("fixed"), COSTS["a-tenth-each"], lambda seq, step: 0.1, 1, 400)
    assert found < 0.8 / COSTS["a-tenth-each"](1)


@pytest.mark.parametrize("length", [20, 60, 200])
def test_what_a_drafter_that_is_never_right_costs_is_bounded_from_the_first_text_on(length: int) -> None:
    """One short text after the other, and a drafter that takes half a step for four guesses."""
    budget, lost, seconds = make("auto"), 0.0, 0.0
    for text in range(20):
        for _ in range(length):
            drafted = min(budget.room(text, 1, 1), 4)
            took = 1 + 0.06 * drafted + 0.12 * drafted
            budget.observe(1 + drafted, took, [Checked(text, drafted, 0, drafted)] if drafted else [])
            lost, seconds = lost + took - 1, seconds + took
        budget.forget(text)
        assert lost <= 4 + 0.02 * seconds, f"after {text + 1} texts {lost:.1f} of {seconds:.0f} steps"


def test_a_text_that_becomes_easy_is_noticed() -> None:
    late = simulate(
        make("auto"), COSTS["memory-bound"], lambda seq, step: 0.0 if step < 600 else 0.9, 1, 2400
    )
    assert late > 3 / COSTS["memory-bound"](1)


def test_sequences_are_judged_apart() -> None:
    budget = make("auto")
    simulate(budget, COSTS["a-tenth-each"], lambda seq, step: 0.95 * (seq == 1), 2, 800)
    rooms = [budget.room(seq, 2, 2) for seq in (0, 1)]
    assert rooms[0] <= 1 < rooms[1]
    budget.forget(0)
    assert budget.room(0, 2, 2) > rooms[0], "what ended is forgotten"


def test_times_lie_between_those_seen() -> None:
    times = Times()
    assert times(3) < times(4)
    times.add(2, 1.0)
    times.add(6, 3.0)
    assert [times(rows) for rows in (2, 4, 6)] == [1.0, 2.0, 3.0] and times(1) < 1.0 and times(9) > 3.0
    times.add(4, 0.5)
    assert times(5) >= times(4), "more rows never take less"
    times.add(2, 1000.0)
    assert times(2) < 1.2, "one disturbed step is no news"
    for rows in (MOST_ROWS, 5 * MOST_ROWS):
        assert make("auto").room(7, rows, 1) == 0, "beside a prompt nothing is guessed"


def test_tries_become_rare_where_none_is_right_and_frequent_again_after_one_that_is() -> None:
    live = Auto(retry=4).start()
    for rows in (1, 2, 3):
        live.observe(rows, 1.4 + 0.6 * rows, [])

    def waits() -> int:
        steps = 1
        while not live.room(0, 1, 1):
            live.observe(1, 2.0, [])
            steps += 1
        return steps

    found = []
    for _ in range(40):
        found.append(waits())
        live.observe(2, 2.6, [Checked(0, 1, 0, 1)])
    tries = [steps for steps in found if steps > 1]
    assert tries == sorted(tries) and tries[-1] == 4 * MOST_PATIENCE, found
    waits()
    live.observe(2, 2.6, [Checked(0, 1, 1, 1)])
    assert waits() == 4


@pytest.mark.parametrize("spec", ["fixed:tokens=0", "fixed:tokens=65", "auto:retry=0", "never"])
def test_options_that_are_none(spec: str) -> None:
    with pytest.raises(ConfigError):
        make(spec)


@pytest.mark.parametrize("budget", ["auto", "auto:retry=1", "fixed:tokens=3", "fixed:tokens=20"])
def test_tokens_do_not_depend_on_the_budget(budget: str) -> None:
    def run(**stack: str) -> tuple[dict[tuple[str, int], list[int]], Engine]:
        config = EngineConfig(stack={"policy": "orca", **stack}, page_tokens=4, threads=1)
        made = Engine(config, decoder=models.decoder("mixed"), poison=True)
        for i in range(3):
            prompt = (3, 1, 4, 1, 5, 3, 1, 4) * (1 + 7 * (i == 1))
            params = SamplingParams(temperature=0.5 * i, seed=i, max_tokens=30, ignore_eos=True)
            made.add(Request(id=str(i), prompt=prompt, params=params))
        found = collect(made)
        nothing_left(made)
        return found, made

    (plain, _), (drafted, made) = run(), run(drafter="copyspec:gamma=1", **{"draft-budget": budget})
    assert drafted == plain
    if budget.startswith("fixed"):
        assert made.counters.drafted_tokens > 0
