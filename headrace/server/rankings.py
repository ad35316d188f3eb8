"""POST /v1/rerank: documents in the order in which they answer a query, by the first token of a ranking.

listwise    one prompt shows the documents under letters and ends with "[" where the model would write its ranking. The
            log-probabilities of the letters there, from one forward pass, order them all; nothing is generated.
            More than `window` documents, or than the context holds, are ranked by windows that slide from the end to
            the beginning by `stride`, so that the best of each are ranked again with those before them.
pointwise   one prompt per document asks whether it answers the query: P("yes") against P("no")

Paper   https://arxiv.org/abs/2406.15657 (FIRST); windows as in https://arxiv.org/abs/2304.09542 (RankGPT)
Differs from the paper: scores are given beside the order (see `slide`), and no document is cut.
"""

from __future__ import annotations

import string
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import msgspec

from headrace.server.errors import bad
from headrace.server.passes import MAX_INPUTS, NEXT, Passes, softmax, tracked
from headrace.server.schema import Common
from headrace.types import Request

LETTERS = string.ascii_uppercase
WINDOW, STRIDE = 20, 10
"""Of the paper."""
SEAM_TOKENS = 2
"""Beside its own tokens, what a document may add where it meets the prompt around it."""
LISTWISE = (
    "Below are documents, each after a letter in brackets. Rank them by how well they answer the query.\n\n"
    "Query: {query}\n\n{documents}\n\nQuery: {query}\n\n"
    "Write the letters of all documents, best first, in the form [B] > [A]. Write nothing else."
)
POINTWISE = (
    'Does the document answer the query? Reply with "yes" or "no" and nothing else.\n\n'
    "Query: {query}\n\nDocument: {document}"
)
PLAIN = "{message}\n\nAnswer:\n"
"""What stands in for the template of a model that has none."""


class Document(msgspec.Struct):
    """A document as an object."""

    text: str


class RerankRequest(Common, kw_only=True):
    """POST /v1/rerank."""

    query: str
    documents: list[str | Document]
    top_n: int | None = None
    return_documents: bool | None = None
    method: Literal["listwise", "pointwise"] | None = None
    window: int | None = None
    stride: int | None = None


class Ranking:
    """One request."""

    def __init__(self, passes: Passes, body: RerankRequest) -> None:
        self._passes, self._body = passes, body
        self._texts = [text if isinstance(text, str) else text.text for text in body.documents]
        self._size, self._stride = body.window or WINDOW, body.stride or STRIDE
        self._shown: list[int] = []  # places of the documents whose window runs
        self._tracked: list[int] = []  # tokens whose log-probabilities it gives

    @classmethod
    async def start(cls, passes: Passes, body: RerankRequest) -> Ranking:
        """Raises ApiError."""
        _check(body)
        made = cls(passes, body)
        if body.method == "pointwise":
            await made._start_pointwise()
        else:
            await made._fit()
            first = next(windows(len(made._texts), made._size, made._stride))
            await made._start_window(range(*first))
        return made

    async def answer(self) -> dict[str, Any]:
        """The whole answer: the best documents first."""
        if self._body.method == "pointwise":
            shares = [softmax(tracked(result, self._tracked))[0] for result in await self._passes.results()]
            order = sorted(range(len(shares)), key=lambda place: -shares[place])
            scores = [shares[place] for place in order]
        else:
            order, scores = await slide(len(self._texts), self._size, self._stride, self._rank)
        results = [self._result(place, score) for place, score in zip(order, scores, strict=True)]
        top = results[: self._body.top_n or None]
        return {**self._passes.head("list"), "results": top, "usage": self._passes.cost()}

    def _result(self, place: int, score: float) -> dict[str, Any]:
        fields: dict[str, Any] = {"index": place, "relevance_score": score}
        if self._body.return_documents is not False:
            fields["document"] = {"text": self._texts[place]}
        return fields

    # ---- listwise ----

    async def _rank(self, places: Sequence[int]) -> list[float]:
        """Log-probabilities of the letters of these documents, in one pass."""
        if self._shown != list(places):  # the first window was started before
            await self._start_window(places)
        [result] = await self._passes.results()
        return tracked(result, self._tracked)

    async def _start_window(self, places: Sequence[int]) -> None:
        self._shown = list(places)
        ids = await self._listwise([self._texts[place] for place in places])
        self._passes.fits(ids, "the query with a window of documents")
        self._tracked = _tokens(self._passes, LETTERS[: len(self._shown)])
        self._passes.start([self._request(ids)])

    async def _listwise(self, texts: Sequence[str]) -> list[int]:
        shown = "\n\n".join(f"[{letter}] {text}" for letter, text in zip(LETTERS, texts, strict=False))
        ids = await self._prompt(LISTWISE.format(query=self._body.query, documents=shown))
        return [*ids, *await self._passes.encode("[", add_special=False)]

    async def _fit(self) -> None:
        """Makes the window so small that any choice of documents fits. Raises ApiError if two do not."""
        least = min(2, len(self._texts))
        self._size = min(self._size, len(self._texts))
        tokens = [len(await self._passes.encode(text, add_special=False)) for text in self._texts]
        longest = sorted(tokens, reverse=True)
        frame = len(await self._listwise([""] * self._size))
        while True:
            need = frame + sum(longest[: self._size]) + SEAM_TOKENS * self._size
            if need < self._passes.service.context:
                break
            if self._size == least:
                raise bad(
                    f"the query with the {least} longest documents has {need} tokens, and at most "
                    f"{self._passes.service.context - 1} fit: shorten them",
                    "documents",
                    "context_length_exceeded",
                )
            self._size -= 1
            self._stride = min(self._stride, self._size // 2)

    # ---- pointwise ----

    async def _start_pointwise(self) -> None:
        self._tracked = _tokens(self._passes, ("yes", "no"))
        requests = []
        for place, text in enumerate(self._texts):
            ids = await self._prompt(POINTWISE.format(query=self._body.query, document=text))
            self._passes.fits(ids, f"the query with documents[{place}]")
            requests.append(self._request(ids))
        self._passes.start(requests, lead=True)

    # ---- both ----

    async def _prompt(self, message: str) -> list[int]:
        """What the model's template makes of a message, or PLAIN."""
        service = self._passes.service
        if not service.has_template:
            return await self._passes.encode(PLAIN.format(message=message))
        self._passes.spend(len(message))
        return list((await service.encode_chat([{"role": "user", "content": message}])).ids)

    def _request(self, ids: Sequence[int]) -> Request:
        return self._passes.request(ids, params=replace(NEXT, logprob_token_ids=tuple(self._tracked)))


def windows(count: int, size: int, stride: int) -> Iterator[tuple[int, int]]:
    """[start, end) of the windows over `count` documents, from the last to the first; neighbours overlap."""
    assert 0 < stride < size or count <= size
    end = count
    while True:
        start = max(0, end - size)
        yield start, end
        if not start:
            return
        end -= stride


Rank = Callable[[Sequence[int]], Awaitable[Sequence[float]]]


async def slide(count: int, size: int, stride: int, rank: Rank) -> tuple[list[int], list[float]]:
    """The order of `count` documents, best first, and a score of each; `rank` gives log-probabilities of some.

    Within one window the scores are the softmax of the log-probabilities. Several windows are chained: a document that
    one left behind stands as far below the one before it as it did there, so scores fall along the order that the
    windows made, and the softmax is of all documents.
    """
    order = list(range(count))
    steps = [0.0] * count  # log-probability of each place less that of the place before it
    for start, end in windows(count, size, stride):
        shown = order[start:end]
        values = dict(zip(shown, await rank(shown), strict=True))
        order[start:end] = sorted(shown, key=lambda place: -values[place])
        for place in range(start + 1, end):
            steps[place] = values[order[place]] - values[order[place - 1]]
    total, heights = 0.0, []
    for step in steps:
        total += step
        heights.append(total)
    return order, softmax(heights)


def _tokens(passes: Passes, words: Sequence[str]) -> list[int]:
    """The token of each word. Raises ApiError if one has none of its own."""
    found = [passes.service.tokenizer.id_of(word) for word in words]
    missing = next((word for word, token in zip(words, found, strict=True) if token is None), None)
    if missing is not None:
        raise bad(f"this model's vocabulary has no token {missing!r}, which the method needs", "method")
    return [token for token in found if token is not None]


def _check(body: RerankRequest) -> None:
    if not body.query:
        raise bad("the query is empty: give at least one character", "query")
    if not 0 < len(body.documents) <= MAX_INPUTS:
        raise bad(f"documents must hold 1 to {MAX_INPUTS} entries", "documents")
    if body.top_n is not None and body.top_n < 0:
        raise bad(f"top_n={body.top_n} must be at least 0, which is all", "top_n")
    if body.method == "pointwise" and (body.window is not None or body.stride is not None):
        raise bad("window and stride belong to the method listwise", "window")
    size = WINDOW if body.window is None else body.window
    if not 2 <= size <= len(LETTERS):
        raise bad(f"window={size} must be between 2 and {len(LETTERS)}, the letters there are", "window")
    if body.stride is not None and not 1 <= body.stride < size:
        raise bad(f"stride={body.stride} must be at least 1 and below the window of {size}", "stride")
