"""Drafts that a test chooses, put into every plan of an engine, and what comes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from headrace.engine import Engine
from headrace.params import SamplingParams
from headrace.schedule.policies import Policy
from headrace.schedule.queues import Budget, View
from headrace.types import Delta, Request, Sequence, Span, StepPlan
from tests.whole import models
from tests.whole.drive import nothing_left

Answers = dict[tuple[str, int], list[Delta]]
PROMPTS = [tuple((5 * i + 3) % models.VOCAB for i in range(23)), (7,), tuple(range(9, 20))]


def plan_by(engine: Engine, policy: Policy) -> None:
    """From now on the engine's steps are this policy's."""
    engine.lanes[0] = replace(engine.lanes[0], policy=policy)


@dataclass
class Drafting:
    """A policy that adds a draft to every span that is sampled."""

    inner: Policy
    engine: Engine
    truth: Answers
    """What is said without drafts."""

    @property
    def longest_span(self) -> int | None:
        return self.inner.longest_span

    def plan(self, view: View, budget: Budget) -> StepPlan:
        plan = self.inner.plan(view, budget)
        return replace(plan, spans=tuple(map(self._extended, plan.spans)))

    def draft(self, span: Span, seq: Sequence, known: list[int]) -> Span:
        """The span with its draft. known: what will follow, as far as there is room."""
        raise NotImplementedError

    def _extended(self, span: Span) -> Span:
        seq = self.engine.queues[span.seq]
        if span.stop < len(seq):
            return span
        answer = [token for delta in self.truth[seq.request.id, seq.index] for token in delta.tokens]
        return self.draft(span, seq, answer[seq.num_generated :][: self.engine.context - span.stop])


def run(made: Engine, params: SamplingParams) -> Answers:
    """The prompts, one after the other."""
    return run_all(
        made, [Request(id=f"r{i}", prompt=p, params=params, arrival=float(i)) for i, p in enumerate(PROMPTS)]
    )


def run_all(made: Engine, wanted: list[Request]) -> Answers:
    """Every request's deltas; the cache is checked after each step, and empty at the end."""
    for request in wanted:
        made.add(request)
    answers: Answers = {}
    while made.busy:
        for delta in made.step():
            answers.setdefault((delta.request, delta.index), []).append(delta)
        made.kv.check()
    nothing_left(made)
    return answers


def tokens(answers: Answers) -> dict[tuple[str, int], list[int]]:
    return {key: [token for delta in deltas for token in delta.tokens] for key, deltas in answers.items()}


def logprobs(answers: Answers) -> list[float]:
    return [p.logprob for key in sorted(answers) for delta in answers[key] for p in delta.logprobs]
