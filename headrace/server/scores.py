"""POST /v1/score: how likely the model finds given texts, or given tokens, after a prompt. One forward pass each.

prompt, choices                 ours: of every choice the log-probability, its tokens, and the mean per token
text_1, text_2                  vLLM's shape: the log-probability of text_2 as the continuation of text_1
query, items, label_token_ids   SGLang's shape: after query and item, the probability of each label token

A choice is encoded together with the prompt, as one text, if the prompt's tokens stay what they are; if not, alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from headrace.params import MAX_TRACKED
from headrace.server.errors import bad
from headrace.server.logprobs import LEAST
from headrace.server.passes import MAX_INPUTS, NEXT, Passes, softmax, tracked
from headrace.server.schema import Common
from headrace.text.choices import Score, continuation
from headrace.types import Request

Text = str | list[int]
SHAPES = (("prompt", "choices"), ("text_1", "text_2"), ("query", "items", "label_token_ids"))


class ScoreRequest(Common, kw_only=True):
    """POST /v1/score: the fields of one of three shapes."""

    prompt: str | list[int] | None = None
    choices: list[str | list[int]] | None = None
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    query: str | list[int] | None = None
    items: str | list[str | list[int]] | None = None
    label_token_ids: list[int] | None = None
    apply_softmax: bool | None = None
    item_first: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    """Special tokens that a text spells are commands: for prompts in a chat's form."""


class Scores:
    """One request that asks for texts."""

    def __init__(self, passes: Passes, body: ScoreRequest, requests: list[Request]) -> None:
        self._passes, self._body, self._requests = passes, body, requests

    @classmethod
    async def start(cls, passes: Passes, body: ScoreRequest) -> Scores | Labels:
        """Raises ApiError."""
        shape = _shape(body)
        if shape == SHAPES[2]:
            return await Labels.start(passes, body)
        pairs = _pairs(body)
        prompts: dict[str, list[int]] = {}  # a prompt of many choices is encoded once
        requests = []
        for place, (prompt, choice) in enumerate(pairs):
            ids = prompts.get(prompt) if isinstance(prompt, str) else prompt
            if ids is None:
                assert isinstance(prompt, str)
                ids = prompts[prompt] = await _encode(passes, body, prompt)
            _check_ids(passes, ids, shape[0])
            tokens = choice if isinstance(choice, list) else None
            if isinstance(choice, str) and isinstance(prompt, str):
                tokens = continuation(ids, await _encode(passes, body, prompt + choice))
            if tokens is None:
                assert isinstance(choice, str)
                tokens = await passes.encode(choice, add_special=False, parse_special=body.parse_special)
            requests.append(_request(passes, ids, tokens, f"{shape[1]}[{place}]"))
        passes.start(requests, lead=True)
        return cls(passes, body, requests)

    async def answer(self) -> dict[str, Any]:
        """The whole answer."""
        results = await self._passes.results()
        scores = []
        for request, result in zip(self._requests, results, strict=True):
            tokens = request.prompt[request.params.prompt_logprobs_start :]
            scores.append(Score(tokens, tuple(max(item.logprob, LEAST) for item in result.prompt_logprobs)))
        if self._body.choices is None:
            data = [{"index": i, "object": "score", "score": score.logprob} for i, score in enumerate(scores)]
            return {**self._passes.head("list"), "data": data, "usage": self._passes.cost()}
        choices = [
            {
                "index": index,
                "logprob": score.logprob,
                "num_tokens": len(score.token_ids),
                "mean_logprob": score.mean,
                "token_ids": list(score.token_ids),
                "token_logprobs": list(score.logprobs),
            }
            for index, score in enumerate(scores)
        ]
        return {**self._passes.head("score"), "choices": choices, "usage": self._passes.cost()}


class Labels:
    """One request that asks for tokens after texts, in SGLang's shape."""

    def __init__(self, passes: Passes, body: ScoreRequest) -> None:
        self._passes, self._body = passes, body

    @classmethod
    async def start(cls, passes: Passes, body: ScoreRequest) -> Labels:
        """Raises ApiError."""
        query, labels = body.query, body.label_token_ids
        items = [body.items] if isinstance(body.items, str) else body.items
        assert query is not None and items is not None and labels is not None
        if not labels or len(labels) > MAX_TRACKED:
            raise bad(f"label_token_ids must hold 1 to {MAX_TRACKED} token ids", "label_token_ids")
        wrong = next((token for token in labels if not 0 <= token < passes.service.vocab), None)
        if wrong is not None:
            raise bad(
                f"token {wrong} is not in the vocabulary of {passes.service.vocab} tokens", "label_token_ids"
            )
        if not items or len(items) > MAX_INPUTS:
            raise bad(f"items must hold 1 to {MAX_INPUTS} entries", "items")
        if any(isinstance(item, str) is not isinstance(query, str) for item in items):
            raise bad("query and items must all be texts, or all be lists of token ids", "items")
        params = replace(NEXT, logprob_token_ids=tuple(labels))
        requests = []
        for place, item in enumerate(items):
            parts: Any = (item, query) if body.item_first else (query, item)
            ids = (
                await _encode(passes, body, "".join(parts))
                if isinstance(query, str)
                else [*parts[0], *parts[1]]
            )
            passes.fits(ids, f"query with items[{place}]")
            requests.append(passes.request(ids, params=params))
        passes.start(requests, lead=not body.item_first)
        return cls(passes, body)

    async def answer(self) -> dict[str, Any]:
        """The whole answer: of every item, one number per label."""
        scores = []
        for result in await self._passes.results():
            values = tracked(result, self._body.label_token_ids or ())
            scores.append(softmax(values) if self._body.apply_softmax else [math.exp(v) for v in values])
        return {**self._passes.head("scoring"), "scores": scores, "usage": self._passes.cost()}


def _shape(body: ScoreRequest) -> tuple[str, ...]:
    """Which of the three it is. Raises ApiError."""
    names = [name for shape in SHAPES for name in shape if getattr(body, name) is not None]
    shape = next((shape for shape in SHAPES if list(shape) == names), None)
    if shape is None:
        raise bad("give prompt and choices, or text_1 and text_2, or query, items and label_token_ids")
    if shape != SHAPES[2]:
        for name in ("apply_softmax", "item_first"):
            if getattr(body, name) is not None:
                raise bad(f"{name} goes with query, items and label_token_ids", name)
    return shape


def _pairs(body: ScoreRequest) -> list[tuple[Text, Text]]:
    """(prompt, what follows it). Raises ApiError."""
    firsts: Sequence[Text]
    seconds: Sequence[Text]
    if body.choices is not None:
        assert body.prompt is not None
        firsts, seconds, name = [body.prompt], body.choices, "choices"
    else:
        firsts = [body.text_1] if isinstance(body.text_1, str) else body.text_1 or []
        seconds = [body.text_2] if isinstance(body.text_2, str) else body.text_2 or []
        name = "text_2"
    if not 0 < len(seconds) <= MAX_INPUTS:
        raise bad(f"{name} must hold 1 to {MAX_INPUTS} entries", name)
    if len(firsts) not in (1, len(seconds)):
        raise bad(f"{len(firsts)} texts in text_1 and {len(seconds)} in text_2: one, or as many", "text_1")
    if not all(firsts) or not all(seconds):
        raise bad("an entry is empty: give at least one character, or one token", name)
    return list(zip(list(firsts) * (len(seconds) if len(firsts) == 1 else 1), seconds, strict=True))


def _check_ids(passes: Passes, ids: list[int], name: str) -> None:
    if not ids:
        raise bad(f"{name} is empty: give at least one token", name)
    passes.fits(ids, name, room=2)


def _request(passes: Passes, ids: list[int], tokens: list[int], name: str) -> Request:
    """Scores `tokens` after `ids`. Raises ApiError."""
    whole = [*ids, *tokens]
    passes.fits(whole, f"the prompt with {name}")
    scored = replace(NEXT, logprobs=None, prompt_logprobs=0, prompt_logprobs_start=len(ids))
    return passes.request(whole, params=scored)


async def _encode(passes: Passes, body: ScoreRequest, text: str) -> list[int]:
    """Token ids of a text that stands at the beginning."""
    return await passes.encode(text, add_special=body.add_special_tokens, parse_special=body.parse_special)
