"""Sarathi: decodes never stall, prompts get what is left of the budget, and at least a quarter of it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from headrace.errors import ConfigError
from headrace.schedule.policies import SLOT
from headrace.schedule.queues import View
from headrace.types import StepPlan
from tests.schedule.simulator import Job, Setting, Simulator, jobs, settings_of_a_pool

ROOMY = Setting(spare=400)


def decodes(view: View) -> set[int]:
    return {seq.id for seq in view.running if seq.remaining == 1}


def most(view: View, plan: StepPlan, tokens: int, idle: int) -> int:
    """Most tokens of a plan: a quarter of the budget goes to prompts, however many decode."""
    full = max(tokens, len(decodes(view)) + -(-tokens // 4))
    return full if decodes(view) & {span.seq for span in plan.spans} else max(full, idle)


@pytest.mark.parametrize(("tokens", "idle"), [(1, 1), (4, 9), (8, 64)])
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(wanted=jobs(), setting=settings_of_a_pool())
def test_small_budgets_keep_the_contract(tokens: int, idle: int, wanted: list[Job], setting: Setting) -> None:
    """The contract, chunk by chunk, and in every step: no decode is left out, and no token is planned too many."""
    done = Simulator(SLOT.make(f"sarathi:tokens={tokens},idle={idle}"), setting, wanted).run()
    for view, plan in done.plans:
        gone = {*plan.recompute, *plan.swap_out}
        assert decodes(view) - gone <= {span.seq for span in plan.spans}, "a decode was skipped"
        assert plan.num_tokens <= most(view, plan, tokens, idle)


def test_a_long_prompt_costs_the_others_little_in_many_steps() -> None:
    wanted = [Job(step=0, prompt=4, output=60, family=i) for i in range(2)] + [
        Job(step=3, prompt=300, output=2, family=2)
    ]
    done = Simulator(SLOT.make("sarathi:tokens=16,idle=512"), ROOMY, wanted).run()
    chunks = [span for _, plan in done.plans for span in plan.spans if span.seq == 3 and span.stop <= 300]
    assert [len(span) for span in chunks] == [14] * 21 + [6], (
        "what two decodes leave of 16, until the prompt ends"
    )
    for view, plan in done.plans:
        assert decodes(view) <= {span.seq for span in plan.spans}


def test_nobody_to_stall_means_large_chunks() -> None:
    done = Simulator(SLOT.make("sarathi:tokens=8,idle=100"), ROOMY, [Job(step=0, prompt=250, output=2)]).run()
    assert [len(span) for _, plan in done.plans for span in plan.spans] == [100, 100, 50, 1]


def test_more_decodes_than_tokens_do_not_starve_prompts() -> None:
    wanted = [Job(step=0, prompt=1, output=50, family=i) for i in range(12)] + [
        Job(step=20, prompt=50, output=1)
    ]
    done = Simulator(SLOT.make("sarathi:tokens=8"), Setting(spare=2000, max_seqs=32), wanted).run()
    assert done.finished[13] == 20 + 50 // 2 - 1, "two tokens of the prompt per step"


def test_decodes_do_not_take_the_pages_of_a_prompt_that_comes_before_them() -> None:
    """An urgent long prompt is let in beside three outputs, whose growth then eats up the room that it was promised."""
    wanted = [Job(step=0, prompt=1, output=40, family=i, priority=1) for i in range(3)]
    urgent = Job(step=4, prompt=60, output=5, priority=0)
    done = Simulator(
        SLOT.make("sarathi:tokens=1,idle=1"), Setting(spare=6, cache=False), [*wanted, urgent]
    ).run()
    assert any(plan.recompute for _, plan in done.plans), "nobody ran out of room: the test is too easy"
    assert all(4 not in plan.recompute for _, plan in done.plans), "the first in order had to give way"


def test_prompts_share_what_is_left_first_come_first_served() -> None:
    wanted = [Job(step=0, prompt=1, output=30)] + [Job(step=2, prompt=20, output=1, family=i) for i in (1, 2)]
    done = Simulator(SLOT.make("sarathi:tokens=11"), ROOMY, wanted).run()
    spans = [[(span.seq, len(span)) for span in plan.spans] for _, plan in done.plans[2:6]]
    assert spans == [[(1, 1), (2, 10)], [(1, 1), (2, 10)], [(1, 1), (3, 10)], [(1, 1), (3, 10)]]


@pytest.mark.parametrize("spec", ["sarathi:tokens=0", "sarathi:idle=0", "sarathi:tokens=-3"])
def test_empty_budgets_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        SLOT.make(spec)
