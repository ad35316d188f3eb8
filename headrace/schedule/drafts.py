"""Drafts: guesses of the next tokens, put at the end of spans in the room that a plan has left.

    plan -> reserve -> extend -> build_batch -> forward -> sample, which keeps a guess as far as it chooses the same

A right guess saves its sequence a step; a wrong one costs its rows and nothing else: it takes only pages that nobody
needs in this step, so it pauses nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from headrace.kv.tables import BlockTables
from headrace.types import Sequence, Span, StepPlan

MOST = 16
"""Drafted tokens of one step, all sequences together: as many rows as a CPU multiplies in little more time than it
takes to read the weights."""

Guess = Callable[[int], tuple[int, ...]]
"""Sequence id -> what comes next, as far as somebody has an idea."""


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
    left, spans = MOST, list[Span]()
    for span in plan.spans:
        seq = sequences[span.seq]
        if span.stop == len(seq) and not span.draft and left > 0:
            room = min(left, context - span.stop, (longest_span or context) - len(span))
            if seq.request.params.max_tokens is not None:
                room = min(room, seq.request.params.max_tokens - seq.num_generated - 1)
            span = _drafted(span, guess(span.seq)[: max(0, room)], tables, spare=len(plan.spans))
            left -= len(span.draft)
        spans.append(span)
    return replace(plan, spans=tuple(spans)) if left < MOST else plan


def _drafted(span: Span, draft: tuple[int, ...], tables: BlockTables, spare: int) -> Span:
    """With as much of the draft as there are pages for; `spare` pages stay for the next step."""
    while draft and tables.missing(span.seq, span.stop + len(draft)) > max(0, tables.available - spare):
        draft = draft[:-1]
    if not draft:
        return span
    tables.reserve(span.seq, span.stop, span.stop + len(draft))
    return replace(span, draft=draft)
