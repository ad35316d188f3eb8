"""Orca: whole prompts, first come first served, and everybody decodes meanwhile."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from headrace.schedule.policies import SLOT
from tests.schedule.simulator import Job, Setting, Simulator, jobs, settings_of_a_pool


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(wanted=jobs(), setting=settings_of_a_pool())
def test_every_span_reaches_the_end_of_what_is_known(wanted: list[Job], setting: Setting) -> None:
    done = Simulator(SLOT.make("orca"), setting, wanted).run()
    for view, plan in done.plans:
        known = {seq.id: seq for seq in [*view.running, *view.candidates]}
        lengths = {span.seq: span.stop for span in plan.spans}
        assert all(stop == known[seq].length for seq, stop in lengths.items()), "a prompt was cut"
        gone = {*plan.recompute, *plan.swap_out}
        assert {seq.id for seq in view.running} - gone <= lengths.keys(), "a running sequence was left out"


def test_newcomers_join_at_once_and_leave_when_they_are_done() -> None:
    wanted = [Job(step=0, prompt=5, output=6), Job(step=2, prompt=40, output=2, family=1)]
    done = Simulator(SLOT.make("orca"), Setting(spare=100), wanted).run()
    spans = [[(span.seq, len(span)) for span in plan.spans] for _, plan in done.plans]
    assert spans == [[(1, 5)], [(1, 1)], [(1, 1), (2, 40)], [(1, 1), (2, 1)], [(1, 1)], [(1, 1)]]


def test_nobody_overtakes() -> None:
    """A small newcomer waits behind a large one that does not fit yet."""
    wanted = [
        Job(step=0, prompt=30, output=10),
        Job(step=1, prompt=36, output=4, family=1),
        Job(step=2, prompt=1, output=1, family=2),
    ]
    done = Simulator(SLOT.make("orca"), Setting(cache=False), wanted).run()
    assert done.finished[1] < done.finished[3] and done.plans[3][1].spans[0].seq == 1
    started = [span.seq for _, plan in done.plans for span in plan.spans if span.start == 0]
    assert started == [1, 2, 3]
