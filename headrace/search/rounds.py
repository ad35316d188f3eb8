"""Rounds: any number of searches side by side in one engine, so that it never runs a few rows where it could run many.

    searches --what each wants next--> one batch --its outputs--> searches ... until each has its answer

Draws depend on a session's seed alone: a search finds the same in company as by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from headrace.llm import LLM
from headrace.search.answer import Answer, Call, Search
from headrace.text.reply import Output


def answers(llm: LLM, searches: Sequence[Search]) -> list[Answer]:
    """What each search gives, in their order. Their sessions are on this LLM.

    A round ends with its longest step: put problems of about one length together. Scorers are called one at a time.
    """
    found: dict[int, Answer] = {}
    given: dict[int, list[Output] | None] = dict.fromkeys(range(len(searches)))
    while given:
        calls: dict[int, Call] = {}
        for place, outputs in given.items():
            try:
                calls[place] = next(searches[place]) if outputs is None else searches[place].send(outputs)
            except StopIteration as end:
                found[place] = end.value
        given = dict(zip(calls, _outputs(llm, list(calls.values())), strict=True))
    return [found[place] for place in range(len(searches))]


def _outputs(llm: LLM, calls: Sequence[Call]) -> list[list[Output]]:
    """Those of each call, all generated together."""
    prompts = [prompt for call in calls for prompt in call.prompts]
    params = [one for call in calls for one in call.params]
    outputs = iter(llm.generate(prompts, params, progress=False))
    return [list(itertools.islice(outputs, len(call.prompts))) for call in calls]
