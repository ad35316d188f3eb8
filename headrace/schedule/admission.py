"""Admission and preemption, as arithmetic on a frozen view: the ledger with which a policy draws up its plan.

    available ---- taken by spans ----|---- promised to prompts under way ----|---- free for newcomers
              +--- given back by paused sequences

Who gives way: the last running sequence in order, even if it was planned already; at last the one that needs the pages,
never one that comes before it. So the first in order always gets on, and nobody waits for ever.
"""

from __future__ import annotations

from headrace.schedule.queues import Budget, SeqView, View
from headrace.types import Span, Status, StepPlan


class Ledger:
    """Draws up one StepPlan. Made, filled and dropped inside one call of a policy."""

    def __init__(self, view: View, budget: Budget) -> None:
        self._cache = view.cache
        self._budget = budget
        holders = view.running
        if view.resting:
            holders = tuple(sorted((*view.running, *view.resting), key=lambda seq: seq.order))
        self._running = {seq.id: seq for seq in holders}  # those that still hold pages, in order
        self._spans: dict[int, Span] = {}
        self._recompute: list[int] = []
        self._swap_out: list[int] = []
        self._swap_in: list[int] = []
        self._tokens = 0
        self._taken = 0
        self._given_back = 0
        self._host_free = view.cache.host_free

    @property
    def num_tokens(self) -> int:
        """Tokens planned so far."""
        return self._tokens

    def runs(self, seq: SeqView) -> bool:
        """Whether a running sequence still does: it may have been paused for another one."""
        return seq.id in self._running

    def run(self, seq: SeqView, stop: int) -> bool:
        """Plans [computed, stop) of a running sequence, pausing others if it must.

        False: there is no room, or the sequence itself was the one to be paused.
        """
        need = self._cache.need(seq.holding, stop)
        while need > self._free():
            victim = next(reversed(self._running.values()))
            self._pause(victim)
            if victim.id == seq.id:
                return False
        self._take(seq, stop, need)
        return True

    def admit(self, seq: SeqView, stop: int, chunk: int) -> bool:
        """Plans the first span of a waiting or swapped sequence, if all its known tokens fit beside what the running
        ones were promised, and every running one could still grow. Newcomers pause nobody."""
        if len(self._running) >= self._budget.max_seqs:
            return False
        reach = self._cache.reach(seq.holding, seq.length, chunk)
        reserve = self._promised(chunk) + len(self._running) if self._running else 0
        if reach + reserve > self._free() or self._paused():
            return False
        if seq.status is Status.SWAPPED:
            self._swap_in.append(seq.id)
        self._running[seq.id] = seq
        self._take(seq, stop, self._cache.need(seq.holding, stop))
        return True

    def plan(self, reason: str) -> StepPlan:
        return StepPlan(
            spans=tuple(self._spans.values()),
            recompute=tuple(self._recompute),
            swap_out=tuple(self._swap_out),
            swap_in=tuple(self._swap_in),
            reason=reason,
        )

    def _take(self, seq: SeqView, stop: int, need: int) -> None:
        self._taken += need
        self._tokens += stop - seq.computed
        self._spans[seq.id] = Span(seq.id, seq.computed, stop)

    def _free(self) -> int:
        return self._cache.available + self._given_back - self._taken

    def _paused(self) -> bool:
        return bool(self._recompute or self._swap_out)

    def _pause(self, victim: SeqView) -> None:
        span = self._spans.pop(victim.id, None)
        if span is not None:  # it was planned before somebody who comes first
            self._taken -= self._cache.need(victim.holding, span.stop)
            self._tokens -= len(span)
        pages = sum(victim.holding.live)
        if self._host_free is not None and pages <= self._host_free:
            self._host_free -= pages
            self._swap_out.append(victim.id)
        else:
            self._recompute.append(victim.id)
        self._given_back = self._cache.freed_by(self._recompute + self._swap_out)
        del self._running[victim.id]

    def _promised(self, chunk: int) -> int:
        """Pages that running sequences still need to finish the tokens they know."""
        total = 0
        for seq in self._running.values():
            span = self._spans.get(seq.id)
            if span is None or span.stop < seq.length:  # the others are promised nothing beyond this step
                rest = self._cache.reach(seq.holding, seq.length, chunk)
                total += max(0, rest - (self._cache.need(seq.holding, span.stop) if span else 0))
        return total
