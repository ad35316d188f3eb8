"""Drafts go where a plan has left room, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from headrace.params import SamplingParams
from headrace.speculate.draft import MOST, extend
from headrace.speculate.tree import Draft
from headrace.types import Request, Sequence, Span, StepPlan

LENGTH = 10


@dataclass
class Tables:
    """Pages of four tokens; only what `extend` asks for."""

    available: int = 100
    reserved: list[tuple[int, int, int]] = field(default_factory=list)

    def missing(self, seq: int, stop: int) -> int:
        return -(-stop // 4) - -(-LENGTH // 4)

    def reserve(self, seq: int, start: int, stop: int) -> None:
        self.available -= self.missing(seq, stop)
        self.reserved.append((seq, start, stop))


def sequence(seq: int, max_tokens: int | None = None) -> Sequence:
    request = Request(id=str(seq), prompt=(1,), params=SamplingParams(max_tokens=max_tokens))
    return Sequence(seq, request, 0, 0, tokens=[1] * LENGTH, prompt_len=LENGTH - 2)


def drafts(
    spans: list[Span],
    tables: Tables | None = None,
    *,
    guess: int = 5,
    max_tokens: int | None = None,
    context: int = 1000,
    longest: int | None = None,
) -> list[int]:
    """How many tokens each span gets, where somebody always guesses `guess` of them."""
    tables = tables or Tables()
    sequences = {span.seq: sequence(span.seq, max_tokens) for span in spans}
    known = tuple(range(100, 100 + guess))
    plan = extend(
        StepPlan(tuple(spans)),
        lambda seq, room, depth, rows: Draft(known[: min(room, depth)]),
        tables,
        sequences,
        context,
        longest,
    )  # type: ignore[arg-type]
    for before, after in zip(spans, plan.spans, strict=True):
        assert (after.seq, after.start, after.stop) == (before.seq, before.start, before.stop)
        assert after.draft in (before.draft, known[: len(after.draft)])
    wanted = [(s.seq, s.stop, s.stop + len(s.draft)) for s in plan.spans if s.draft and s not in spans]
    assert tables.reserved == wanted
    return [len(span.draft) for span in plan.spans]


def decodes(count: int) -> list[Span]:
    return [Span(seq, LENGTH - 1, LENGTH) for seq in range(count)]


def test_all_of_a_guess() -> None:
    assert drafts(decodes(2)) == [5, 5]
    assert drafts(decodes(2), guess=0) == [0, 0]


def test_only_spans_that_are_sampled_and_have_none() -> None:
    assert drafts([Span(1, 0, LENGTH - 1), Span(2, 3, LENGTH), Span(3, 9, LENGTH, draft=(7,))]) == [0, 5, 1]


def test_a_step_has_a_limit() -> None:
    assert drafts(decodes(5)) == [5, 5, 5, MOST - 15, 0]


@pytest.mark.parametrize("max_tokens,expected", [(None, 5), (8, 5), (7, 4), (4, 1), (3, 0)])
def test_nothing_that_would_be_cut(max_tokens: int | None, expected: int) -> None:
    """Two tokens are generated; the step yields one beside the draft."""
    assert drafts(decodes(1), max_tokens=max_tokens) == [expected]
    assert drafts(decodes(1), context=LENGTH + expected) == [expected]
    assert drafts(decodes(1), longest=1 + expected) == [expected]


@pytest.mark.parametrize(
    "available,expected", [(0, [2, 2]), (2, [2, 2]), (3, [5, 2]), (4, [5, 5]), (9, [5, 5])]
)
def test_pages_that_others_need_next_stay(available: int, expected: list[int]) -> None:
    """Two tokens fit on the page at hand; a page per sequence is left."""
    assert drafts(decodes(2), Tables(available)) == expected
