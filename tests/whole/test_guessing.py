"""Random schedules with drafters that guess trees and drafters that draw: tokens are those of every request alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.config import EngineConfig
from headrace.engine import Engine
from tests.speculate.test_draft_model import second
from tests.whole import models
from tests.whole.drive import Ask, Fork
from tests.whole.test_schedules import run_schedule, schedules

EXACT = (
    {"drafter": "recycle:top=4", "draft-budget": "fixed:tokens=7"},
    {"drafter": "recycle:top=2,guesses=20", "draft-budget": "fixed:tokens=16"},
    {"drafter": "draft_model:model=own,length=2", "draft-budget": "fixed:tokens=2"},
    {"drafter": "draft_tree:model=own,branching=3.1", "draft-budget": "fixed:tokens=5"},
)
DRAWN = (
    {
        "drafter": "draft_model:model=own,length=2",
        "verifier": "rejection",
        "draft-budget": "fixed:tokens=2",
    },
    {"drafter": "draft_tree:model=own,branching=2.2", "verifier": "rsd", "draft-budget": "fixed:tokens=6"},
)
"""Whose sampled tokens keep their law only: greedy requests alone are compared."""
Schedule = tuple[str, EngineConfig, list[Ask], list[Fork]]


@st.composite
def guessing(draw: st.DrawFn, names: tuple[str, ...], stacks: tuple[dict[str, str], ...]) -> Schedule:
    model, config, asks, forks = draw(schedules(names))
    stack = draw(st.sampled_from(stacks))
    if "verifier" in stack:
        asks = [replace(ask, request=replace(ask.request, params=greedy(ask))) for ask in asks]
    stack = {
        slot: spec.replace("own", model) for slot, spec in stack.items()
    }  # a second model that is often right
    return model, replace(config, stack={**config.stack, **stack}), asks, forks


def greedy(ask: Ask) -> object:
    return replace(ask.request.params, temperature=0, n=1)


@pytest.fixture(autouse=True)
def second_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_open", lambda self, name: second(name))


FAMILIES = {"windows": models.WINDOWS, "blocks": models.BLOCKS, "native": models.NATIVE}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("examples", [5, pytest.param(300, marks=pytest.mark.slow)])
def test_tokens_do_not_depend_on_who_guesses(family: str, examples: int) -> None:
    happened: Counter[str] = Counter()
    names = tuple(FAMILIES[family])

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(guessing(names, EXACT + DRAWN))
    def check(schedule: Schedule) -> None:
        counters = run_schedule(schedule).counters
        happened["accepted"] += counters.accepted_tokens
        happened["refused"] += counters.drafted_tokens - counters.accepted_tokens

    check()
    assert min(happened.values()) >= 20, f"the schedules put too little pressure on the engine: {happened}"
