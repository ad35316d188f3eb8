"""A lane: one model at work for an engine, with keys and values of its own and a book of how far sequences have come.

An engine has one lane, whose book is the engine's own queues; with a switcher (headrace/switch) it has two. A sequence
whose turn is in the other lane *rests*: it keeps its pages, runs nothing, and lags behind its text. When its turn comes
it has tokens left to read, like a prompt, and so is read in the policy's chunks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch

from headrace.forward.batch import build_batch
from headrace.forward.runner import Logits, Runner
from headrace.kv.cache import KVCache
from headrace.schedule.policies import Policy
from headrace.schedule.queues import Budget, Queues
from headrace.types import Sequence, Status, StepPlan

_NEVER = -1e4  # a logit that no other one is so far above: e ** -1e4 is 0


@dataclass(frozen=True)
class Lane:
    """See the module."""

    policy: Policy
    budget: Budget
    queues: Queues
    """Of the first lane the engine's; of another one Sequences that share their tokens with those, and have a status
    and a num_computed of their own."""
    kv: KVCache
    runner: Runner
    context: int
    """Longest text that it takes."""
    device: torch.device
    swap: bool
    """Whether paused sequences move to host memory."""

    def plan(self, unready: Set[int] = frozenset(), away: Set[int] = frozenset()) -> StepPlan:
        """What the policy would run next. Changes nothing. away: sequences whose turn is in another lane.

        Where resting sequences leave no room for anybody to begin, the last of them gives way.
        """
        view = self.queues.view(self.kv.tables, self.swap, unready, away)
        plan: StepPlan = self.policy.plan(view, self.budget)
        if plan.idle and view.resting and next(iter(view.candidates), None) is not None:
            return StepPlan((), recompute=(view.resting[-1].id,), reason="one that rests gives way")
        return plan

    def run(self, plan: StepPlan, vocab: int) -> Logits:
        """The logits of a plan whose pages are reserved, as models with so many tokens have them: others that this one
        knows are left out, and those that it does not know never come."""
        found = self.runner.forward(build_batch(plan.spans, self.queues.sequences, self.kv, self.device))
        logits_RV = found.logits_RV
        if logits_RV.shape[1] > vocab:
            return found._replace(logits_RV=logits_RV[:, :vocab].contiguous())
        if logits_RV.shape[1] < vocab:
            missing = (0, vocab - logits_RV.shape[1])
            return found._replace(logits_RV=torch.nn.functional.pad(logits_RV, missing, value=_NEVER))
        return found

    def runs(self, seq: int) -> bool:
        """Whether it holds pages here."""
        return seq in self.queues and self.queues[seq].status is Status.RUNNING

    def enter(self, seq: Sequence) -> Sequence:
        """A sequence of the engine gets a place in this lane's book."""
        own = dataclasses.replace(seq, num_computed=0, num_cached=0, status=Status.WAITING)
        own.tokens = seq.tokens  # the same list: it grows in both
        self.queues.add(own)
        return own

    def share(self, parent: int, child: Sequence) -> None:
        """Lets a child run from its parent's pages, all but its last token; otherwise it waits, and makes its own."""
        crowded = self.queues.count(Status.RUNNING) >= self.budget.max_seqs
        if not self.runs(parent) or crowded or parent in self.kv.tables.present:
            return
        own = self.queues[child.id] if child.id in self.queues else self.enter(child)
        own.num_computed = min(self.queues[parent].num_computed, len(own) - 1)
        own.status = Status.RUNNING
        self.kv.tables.share(parent, child.id, own.num_computed)

    def rewind(self, seq: int, computed: int) -> None:
        """Its text is another one from position `computed` on. Where a group has let go of earlier ones, which would be
        read again now, it lets go of all."""
        own = self.queues[seq]
        if own.num_computed <= computed:
            return
        if all(group.holds == "all" and group.behind is None for group in self.kv.tables.groups):
            self.kv.tables.rewind(seq, computed)
            own.num_computed = computed
        else:
            self.reset(seq, Status.WAITING)

    def reset(self, seq: int, status: Status) -> None:
        """It lets go of its pages."""
        if seq in self.queues:
            self.kv.tables.release(seq)
            self.queues[seq].status, self.queues[seq].num_computed = status, 0

    def forget(self, seq: int) -> None:
        """It has ended."""
        if seq in self.queues:
            self.kv.tables.release(seq)
            self.queues.remove(seq)

    @property
    def sequences(self) -> Mapping[int, Sequence]:
        return self.queues.sequences
