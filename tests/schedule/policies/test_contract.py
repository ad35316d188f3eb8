"""Every policy, driven without a model: plans keep to the contract, books balance, and nobody waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.schedule.policies import SLOT
from tests.kv.contract import members
from tests.schedule.simulator import Job, Setting, Simulator, jobs, settings_of_a_pool

each_policy = pytest.mark.parametrize("name", members(SLOT))
QUICK = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@each_policy
@QUICK
@given(wanted=jobs(), setting=settings_of_a_pool())
def test_everything_ends_whatever_arrives(name: str, wanted: list[Job], setting: Setting) -> None:
    """Every check of the simulator, in every step."""
    done = Simulator(SLOT.make(name), setting, wanted).run()
    assert len(done.finished) == sum(1 + job.forks for job in wanted)


@each_policy
@settings(QUICK, max_examples=10)
@given(lengths=st.lists(st.tuples(st.integers(100, 700), st.integers(1, 60)), min_size=2, max_size=4))
def test_long_prompts_beside_long_outputs_end_in_the_smallest_pool(
    name: str, lengths: list[tuple[int, int]]
) -> None:
    """Barely room for the longest of them: all others take turns."""
    wanted = [
        Job(step=i, prompt=prompt, output=output, family=i) for i, (prompt, output) in enumerate(lengths)
    ]
    Simulator(SLOT.make(name), Setting(page_tokens=(16,)), wanted).run()


@each_policy
@pytest.mark.parametrize("prompt", [6, 8])
@pytest.mark.parametrize("cache", [True, False])
def test_forks_fit_into_what_is_left(name: str, prompt: int, cache: bool) -> None:
    """Pages shared by samples are copied when they write: whatever the pool's size, a plan knows."""
    wanted = [
        Job(step=0, prompt=prompt, output=9, forks=3),
        Job(step=1, prompt=11, output=9, forks=2, family=1),
    ]
    for spare in range(12):
        Simulator(SLOT.make(name), Setting(spare=spare, cache=cache), wanted).run()


@each_policy
def test_the_longest_span_is_as_long_as_promised(name: str) -> None:
    """A pool is sized by it."""
    policy = SLOT.make(name)
    wanted = [Job(step=step, prompt=1500, output=3, family=step) for step in (0, 1)]
    done = Simulator(policy, Setting(page_tokens=(16,), spare=200), wanted).run()
    longest = max(len(span) for _, plan in done.plans for span in plan.spans)
    assert longest <= (1500 if policy.longest_span is None else policy.longest_span)


@each_policy
def test_a_roomy_pool_pauses_nobody_and_keeps_everybody_busy(name: str) -> None:
    wanted = [Job(step=i, prompt=20, output=10, family=i % 3) for i in range(6)]
    done = Simulator(SLOT.make(name), Setting(spare=500), wanted).run()
    assert all(not plan.recompute and not plan.swap_out for _, plan in done.plans)
    assert max(len(plan.spans) for _, plan in done.plans) == 6, "sequences that could run together did not"


@each_policy
def test_an_urgent_newcomer_is_next(name: str) -> None:
    """A higher priority is served before those that arrived earlier, as soon as a place is free."""
    wanted = [Job(step=0, prompt=8, output=4, family=i, priority=1) for i in range(4)] + [
        Job(step=1, prompt=8, output=4, priority=0)
    ]
    done = Simulator(SLOT.make(name), Setting(spare=100, max_seqs=1), wanted).run()
    assert sorted(done.finished, key=done.finished.__getitem__) == [1, 5, 2, 3, 4]
