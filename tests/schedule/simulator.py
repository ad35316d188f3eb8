"""A policy at work without a model: real queues, real block tables, a tiny pool, and tokens that are made up.

Every page holds, per token, a fingerprint of everything up to that token. So each read checks that the pages a sequence
lists are the right ones, whatever was cached, copied, moved, freed or taken over on the way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from hypothesis import strategies as st

from headrace.forward.memory import pages_for
from headrace.kv.groups import GroupSpec, Member, PageSizes
from headrace.kv.pool import FREED, PagePool
from headrace.kv.prefix import PrefixTree
from headrace.kv.tables import BlockTables
from headrace.params import SamplingParams
from headrace.schedule.policies import Policy
from headrace.schedule.queues import Budget, Queues, SeqView, View
from headrace.types import Request, Sequence, Span, Status, StepPlan

STAMP = 8
"""Bytes of one fingerprint."""


@dataclass(frozen=True)
class Job:
    """A request: when it arrives, how long it is, and how much it will say."""

    step: int
    prompt: int
    output: int
    priority: int = 0
    forks: int = 0
    """Further samples, which go on from the computed prompt."""
    family: int = 0
    """Prompts of one family start with the same tokens."""


@dataclass(frozen=True)
class Setting:
    """The pool and the limits."""

    windows: tuple[int | None, ...] = (None,)
    page_tokens: tuple[int, ...] = (4,)
    spare: int = 0
    """Pages beyond what the longest job needs by itself."""
    host: int | None = None
    """Pages of host memory; None: paused sequences are recomputed."""
    max_seqs: int = 8
    cache: bool = True


@st.composite
def jobs(draw: st.DrawFn, longest: int = 45) -> list[Job]:
    return draw(
        st.lists(
            st.builds(
                Job,
                step=st.integers(0, 15),
                prompt=st.integers(1, longest),
                output=st.integers(1, 24),
                priority=st.sampled_from([0, 0, 1]),
                forks=st.sampled_from([0, 0, 2]),
                family=st.integers(0, 2),
            ),
            min_size=1,
            max_size=7,
        )
    )


def settings_of_a_pool() -> st.SearchStrategy[Setting]:
    return st.builds(
        lambda groups, **others: Setting(windows=groups[0], page_tokens=groups[1], **others),
        groups=st.sampled_from(
            [
                ((None,), (4,)),
                ((None,), (1,)),
                ((6,), (2,)),
                ((None, 5), (2, 4)),
                ((3, 9), (4, 2)),
                ((None, 70), (4, 4)),
            ]
        ),
        spare=st.integers(0, 12),
        host=st.none() | st.integers(0, 40),
        max_seqs=st.sampled_from([1, 2, 3, 8]),
        cache=st.booleans(),
    )


@dataclass
class Simulator:
    """Runs jobs under a policy and checks, at every step, all that a plan must be."""

    policy: Policy
    setting: Setting
    jobs: list[Job]
    now: int = 0
    plans: list[tuple[View, StepPlan]] = field(default_factory=list)
    """What was planned, step by step."""
    finished: dict[int, int] = field(default_factory=dict)
    """Sequence -> step at which it ended."""

    def __post_init__(self) -> None:
        groups = tuple(
            GroupSpec(f"g{i}", (Member(i, (0,), 1),), window) for i, window in enumerate(self.setting.windows)
        )
        tokens = self.setting.page_tokens
        sizes = PageSizes(max(tokens) * STAMP, tokens, math.lcm(*tokens))
        longest = max(job.prompt + job.output for job in self.jobs)
        pages = pages_for(groups, sizes, longest, self.policy.longest_span) + self.setting.spare
        host, cpu = self.setting.host, torch.device("cpu")
        pool = PagePool(pages, sizes.page_bytes, cpu, poison=True)
        self.tables = BlockTables(
            pool,
            None if host is None else PagePool(host, sizes.page_bytes, cpu, poison=True),
            groups,
            sizes,
            PrefixTree(pool, sizes.granule, self.setting.windows, "stack") if self.setting.cache else None,
        )
        self.queues = Queues()
        self.budget = Budget(max_seqs=self.setting.max_seqs)
        self._stamps: dict[int, list[int]] = {}
        self._by_id: dict[int, Job] = {}
        self._bytes = pool.arena_PX.numpy().view(np.int64)

    @property
    def bound(self) -> int:
        """Steps within which everything must be over: whoever is first gets at least one token further in each, and
        an arrival may set everybody else back to the start."""
        return (len(self.jobs) + 1) * sum((1 + j.forks) * (j.prompt + j.output) for j in self.jobs) + 20

    def run(self) -> Simulator:
        while len(self.queues) or any(job.step >= self.now for job in self.jobs):
            assert self.now < self.bound, "somebody waits for ever"
            self.step()
        assert self.tables.available == len(self.tables.pool), "a page was lost"
        assert self.tables.host is None or self.tables.host.num_free == len(self.tables.host)
        return self

    def step(self) -> None:
        for number, job in enumerate(self.jobs):
            if job.step == self.now:
                self._arrive(number, job)
        if len(self.queues):
            view = self.queues.view(self.tables, swap=self.setting.host is not None)
            plan = self.policy.plan(view, self.budget)
            view = replace(view, candidates=tuple(view.candidates))
            assert plan == self.policy.plan(view, self.budget), "not a pure function of the view"
            check(view, plan, self.budget)
            self.plans.append((view, plan))
            self._apply(plan)
            for span in plan.spans:
                self._commit(span)
            self.tables.check()
        self.now += 1

    # ---- details ----

    def _arrive(self, number: int, job: Job) -> None:
        prompt = tuple((job.family * 7 + i * i) % 11 for i in range(job.prompt))
        request = Request(
            id=f"r{number}",
            prompt=prompt,
            params=SamplingParams(),
            arrival=float(self.now),
            priority=job.priority,
        )
        first = self._enter(request, job, None)
        for _ in range(job.forks):
            self._enter(request, job, first)

    def _enter(self, request: Request, job: Job, first: Sequence | None) -> Sequence:
        seq = Sequence(
            id=len(self._by_id) + 1,
            request=request,
            index=0,
            seed=0,
            tokens=list(request.prompt),
            prompt_len=len(request.prompt),
            status=Status.WAITING if first is None else Status.HELD,
            parent=None if first is None else first.id,
        )
        self._by_id[seq.id] = job
        self._stamps[seq.id] = []
        self.queues.add(seq)
        return seq

    def _apply(self, plan: StepPlan) -> None:
        """As KVCache.reserve does it; OutOfPages is a broken plan."""
        for paused in plan.recompute:
            self.tables.release(paused)
            self.queues[paused].status, self.queues[paused].num_computed = Status.WAITING, 0
        for paused in plan.swap_out:
            self.tables.swap_out(paused)
            self.queues[paused].status = Status.SWAPPED
        for span in plan.spans:
            seq = self.queues[span.seq]
            if not self.tables.holds(seq.id) and seq.id not in plan.swap_in:
                assert self.tables.admit(seq.id, seq.tokens, "") == span.start
        for resumed in plan.swap_in:
            self.tables.swap_in(resumed, "")
        for span in plan.spans:
            self.tables.reserve(span.seq, span.start, span.start + len(span))
            self.queues[span.seq].status = Status.RUNNING

    def _commit(self, span: Span) -> None:
        seq = self.queues[span.seq]
        stamps = self._stamps_of(seq)
        for group, size in enumerate(self.tables.sizes.tokens):
            pages = self.tables.live_pages(seq.id, group)
            for p in range(span.start, span.stop):
                assert not self.tables.pool.is_shared(pages[p // size]), "others would notice this write"
                self._bytes[pages[p // size], p % size] = stamps[p]
            window = self.setting.windows[group]
            first = 0 if window is None else max(0, span.start - window + 1)
            for p in range(first, span.stop):
                assert pages[p // size] != FREED, f"{seq.id} reads a page that was freed"
                assert self._bytes[pages[p // size], p % size] == stamps[p], f"{seq.id} reads another's keys"
        seq.num_computed = span.stop
        if span.stop == len(seq):
            seq.tokens.append((seq.id * 31 + len(seq) * 17) % 11)
        self.tables.advance(seq.id, seq.tokens, seq.num_computed)
        if seq.num_computed >= seq.prompt_len:
            self._fork(seq)
        if seq.num_generated == self._by_id[seq.id].output:
            seq.status = Status.FINISHED
            self.tables.release(seq.id)
            self.queues.remove(seq.id)
            self.finished[seq.id] = self.now

    def _fork(self, parent: Sequence) -> None:
        for child in [s for s in self.queues if s.status is Status.HELD and s.parent == parent.id]:
            child.status = Status.WAITING
            if self.queues.count(Status.RUNNING) < self.setting.max_seqs:
                child.num_computed = min(parent.num_computed, len(child) - 1)
                child.status = Status.RUNNING
                self.tables.share(parent.id, child.id, child.num_computed)

    def _stamps_of(self, seq: Sequence) -> list[int]:
        """One number per token that depends on all tokens up to it."""
        stamps = self._stamps[seq.id]
        for token in seq.tokens[len(stamps) :]:
            stamps.append(hash((stamps[-1] if stamps else 0, token)))
        return stamps


def check(view: View, plan: StepPlan, budget: Budget) -> None:
    """What the contract says of every plan."""
    running = {seq.id: seq for seq in view.running}
    candidates = {seq.id: seq for seq in view.candidates}
    known: dict[int, SeqView] = {**running, **candidates}
    spans = {span.seq: span for span in plan.spans}
    paused = [*plan.recompute, *plan.swap_out]
    assert plan.spans or paused, "no progress"
    assert len(spans) == len(plan.spans), "two spans of one sequence"
    for span in plan.spans:
        seq = known[span.seq]
        assert span.start == seq.computed, f"{span} does not start where {seq.computed} tokens are computed"
        assert span.stop <= seq.length, "tokens that nobody knows"
    assert len(set(paused)) == len(paused) and set(paused) <= running.keys(), "only what runs can be paused"
    assert not spans.keys() & set(paused), "paused, and run"
    admitted = [seq for seq in spans if seq in candidates]
    assert len(running) - len(paused) + len(admitted) <= max(budget.max_seqs, len(running)), (
        "too many at once"
    )
    resumed = {seq for seq in admitted if candidates[seq].status is Status.SWAPPED}
    assert set(plan.swap_in) == resumed and len(plan.swap_in) == len(resumed)
    moved = sum(sum(running[seq].holding.live) for seq in plan.swap_out)
    assert moved <= (view.cache.host_free or 0), "host memory overflows"
    need = sum(view.cache.need(known[span.seq].holding, span.stop) for span in plan.spans)
    assert need <= view.cache.available + view.cache.freed_by(paused), "more pages than there are"
    for seq in paused:
        behind = [other for other in spans if known[other].order > running[seq].order]
        assert not behind, f"{seq} was paused, and {behind}, which come after it, run on"
