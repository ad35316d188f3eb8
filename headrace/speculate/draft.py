"""Drafts: guesses of the next tokens, put at the end of spans in the room that a plan has left.

    plan -> reserve -> extend -> build_batch -> forward -> sample, which keeps guesses as far as they are chosen

They are a chain, or a tree where a place has several (headrace/speculate/tree.py). A right guess saves its sequence a
step; a wrong one costs its rows and nothing else: it takes only pages that nobody needs in this step, so it pauses
nobody. What a grammar forces goes first: that guess is right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from headrace.compose import Stack
from headrace.kv.branches import ends
from headrace.kv.tables import BlockTables
from headrace.schedule.queues import Queues
from headrace.speculate.budgets import Checked, LiveBudget
from headrace.speculate.drafters import Drafter
from headrace.speculate.second import Open
from headrace.speculate.tree import Draft, depth_first, first, pruned
from headrace.types import Sequence, Span, StepPlan, StepResult

MOST = 16
"""Drafted tokens of one step, all sequences together: as many rows as a CPU multiplies in little more time than it
takes to read the weights."""

Guess = Callable[[int, int, int, int], Draft]
"""(sequence id, room, depth, rows of the step so far) -> what comes next, as far as somebody has an idea: at most
`room` tokens, `depth` after each other."""


class Speculator:
    """Extends the plans of one engine, and learns what came of it."""

    def __init__(
        self,
        stack: Stack,
        open_model: Open,
        forced: Callable[[int], tuple[int, ...]],
        tables: BlockTables,
        queues: Queues,
        context: int,
        longest_span: int | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """forced: tokens of a sequence that are sure to come."""
        drafter: Drafter | None = stack.one("drafter")
        laws: bool = stack.one("verifier").laws
        self._drafter = drafter.start(open_model, laws) if drafter is not None else None
        self._budget: LiveBudget = stack.one("draft-budget").start()
        self._forced, self._clock = forced, clock
        self._tables, self._queues = tables, queues
        self._context, self._longest_span = context, longest_span
        self._began, self._sampled = 0.0, 0
        self._guessed: set[int] = set()  # sequences of this step that the drafter had an idea for

    def extend(self, plan: StepPlan) -> StepPlan:
        """The plan with drafts, for which pages are reserved."""
        sequences = self._queues.sequences
        if self._drafter is None and not any(self._forced(span.seq) for span in plan.spans):
            return plan
        if self._drafter is not None:
            self._began, self._guessed = self._clock(), set()
            self._sampled = sum(span.stop == len(sequences[span.seq]) for span in plan.spans)
        return extend(plan, self._guess, self._tables, sequences, self._context, self._longest_span)

    def observe(self, plan: StepPlan, result: StepResult, logits_RV: Tensor) -> None:
        """The step of a plan that was extended is done, not yet committed. logits_RV: as the sampler got them."""
        if self._drafter is None:
            return
        row = 0
        for span in plan.spans:
            seq = self._queues[span.seq]
            if span.stop == len(seq) and seq.request.pooling is None:
                rows = slice(row, row + 1 + len(span.draft))
                row = rows.stop
                self._drafter.learn(seq, (seq.tokens[-1], *span.draft), logits_RV[rows])
        pairs = zip(plan.spans, result.accepted, strict=True)
        checked = [
            Checked(
                span.seq,
                span.end - span.stop,
                max(0, min(len(span.draft), len(accepted.tokens) - 1)),
                len(span.draft),
            )
            for span, accepted in pairs
            if span.seq in self._guessed and span.draft
        ]
        self._budget.observe(plan.num_tokens, self._clock() - self._began, checked)

    def forget(self, seq: int) -> None:
        """The sequence has ended."""
        if self._drafter is not None:
            self._drafter.forget(seq)
            self._budget.forget(seq)

    def _guess(self, seq: int, room: int, depth: int, rows: int) -> Draft:
        forced = self._forced(seq)
        if forced or self._drafter is None:
            return Draft(forced)
        room = min(room, self._budget.room(seq, rows, self._sampled))
        found = self._drafter.propose(self._queues[seq], room, depth) if room > 0 else Draft()
        assert len(found.tokens) <= max(0, room), "more guesses than there is room for"
        if found.tokens:
            self._guessed.add(seq)
        return found


def extend(
    plan: StepPlan,
    guess: Guess,
    tables: BlockTables,
    sequences: Mapping[int, Sequence],
    context: int,
    longest_span: int | None,
) -> StepPlan:
    """The plan with drafts, for which pages are reserved here; those of the plan itself are already.

    Only for spans that are sampled and bring no draft of their own; nothing beyond max_tokens or the context.
    """
    left, spans, rows = MOST, list[Span](), plan.num_tokens
    for span in plan.spans:
        seq = sequences[span.seq]
        if span.stop == len(seq) and not span.draft and left > 0:
            room, depth = min(left, (longest_span or context) - len(span)), context - span.stop
            if seq.request.params.max_tokens is not None:
                depth = min(depth, seq.request.params.max_tokens - seq.num_generated - 1)
            if min(room, depth) > 0:
                draft = guess(span.seq, room, depth, rows)
                if draft.tokens:
                    span = _drafted(span, pruned(draft, room, depth), tables, spare=len(plan.spans))
                    left, rows = left - len(span.draft), rows + len(span.draft)
        spans.append(span)
    return replace(plan, spans=tuple(spans)) if left < MOST else plan


def _drafted(span: Span, draft: Draft, tables: BlockTables, spare: int) -> Span:
    """With as much of the draft as there are pages for; `spare` pages stay for the next step."""
    left = max(0, tables.available - spare)
    for count in range(len(draft.tokens), 0, -1):
        part = depth_first(first(draft, range(count)))
        wanted = replace(span, draft=part.tokens, parents=part.parents, laws=part.laws)
        own, *others = ends(wanted)
        missing = tables.missing(span.seq, own)
        if others:
            missing += tables.missing_branches(span.stop, others)
        if missing <= left:
            tables.reserve(span.seq, span.stop, own)
            if others:
                tables.branch(span.seq, span.stop, others)
            return wanted
    return span
