"""Requests that a forward pass answers, without generating: embeddings, scores and rankings.

One HTTP request may need many passes, and some of them only when others have ended. At most SLICE of them are with the
engine at a time, and no more than half of what the queue takes, so that a long list leaves room for others; the request
is counted once, when it ends.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, TypeVar

from headrace.params import SamplingParams
from headrace.server.client import Job
from headrace.server.errors import bad
from headrace.server.schema import MAX_PROMPTS, Common, check_call
from headrace.server.service import Service
from headrace.server.watch import Watch
from headrace.text.reply import Usage
from headrace.types import Delta, Logprob, Pooling, Request

MAX_INPUTS = 2048
"""Texts of one request, as OpenAI's clients send them."""
MAX_CHARS = 8 << 20
"""Characters that one request may have encoded: a long query is encoded once per document."""
SLICE = MAX_PROMPTS
LEAD_TOKENS = 64
"""Where all prompts share so many first tokens, one of them runs before the others: they find those in the cache."""
NEXT = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, logprobs=0)
"""What tells of the token after a prompt."""
Value = TypeVar("Value")


@dataclasses.dataclass
class Result:
    """What came of one pass."""

    embedding: bytes = b""
    """float32, little-endian."""
    prompt_logprobs: list[Logprob] = dataclasses.field(default_factory=list)
    next: Logprob | None = None
    """Of the token after the prompt, with the tracked ones."""

    def take(self, delta: Delta) -> None:
        """Adds what one step gave."""
        self.embedding += delta.embedding
        self.prompt_logprobs += delta.prompt_logprobs
        if delta.logprobs:
            self.next = delta.logprobs[0]


class Passes:
    """The passes of one HTTP request."""

    def __init__(self, service: Service, id: str, serial: int, body: Common) -> None:
        """serial: makes the names of its passes unique, whatever `id` the client chose. Raises ApiError."""
        check_call(body)
        self.service, self.id, self.model = service, id, body.model or service.name
        self.params = None
        """There are no sampling parameters."""
        self.created = int(time.time())
        self._name, self._body = f"{id}.{serial}", body
        self._made = 0
        self._chars = 0
        self._waiting: list[Request] = []
        self._jobs: list[Job] = []  # with the engine
        self._all: list[Job] = []  # that ever were
        self._cached: dict[str, int] = {}
        self.watch = Watch(service.metrics, self._all, time.perf_counter())
        config = service.client.config
        self._slice = max(1, min(SLICE, (config.max_seqs + config.max_waiting) // 2))

    # ---- before ----

    async def encode(
        self, text: str, *, add_special: bool | None = None, parse_special: bool | None = None
    ) -> list[int]:
        """Token ids of a text. Raises ApiError if the request has become too much.

        Without `add_special`, what the model puts before a text is added; without `parse_special`, special tokens that
        the text spells are text.
        """
        self.spend(len(text))
        return await self.service.encode(
            text, add_special=add_special is not False, parse_special=bool(parse_special)
        )

    def spend(self, chars: int) -> None:
        """Counts characters that are about to be encoded. Raises ApiError if they are too many."""
        self._chars += chars
        if self._chars > MAX_CHARS:
            raise bad(
                f"more than {MAX_CHARS} characters to encode, repetitions counted: ask in several requests"
            )

    def fits(self, ids: Sequence[int], param: str, *, room: int = 1) -> None:
        """Raises ApiError, with both numbers, if a prompt is too long. `room`: tokens that must fit behind it."""
        most = self.service.context - room
        if len(ids) > most:
            raise bad(
                f"{param} has {len(ids)} tokens, and at most {most} fit", param, "context_length_exceeded"
            )

    def request(
        self, ids: Sequence[int], *, params: SamplingParams | None = None, pooling: Pooling | None = None
    ) -> Request:
        """One pass. Raises ApiError if the engine could never run it."""
        self._made += 1
        name, params = f"{self._name}/{self._made}", params or SamplingParams()
        return self.service.request(name, ids, params, self._body, pooling=pooling)

    # ---- the passes ----

    def start(self, requests: Sequence[Request], *, lead: bool = False) -> None:
        """Hands the first of them to the engine. Raises Unavailable or QueueFull, and then none runs.

        lead: if they share their beginning, one goes ahead.
        """
        assert not self._jobs, "those before have not ended"
        ahead = lead and self.service.client.config.prefix_cache and _begin_alike(requests)
        self._waiting = list(requests)
        self._hand_over(1 if ahead else self._slice)

    async def results(self) -> list[Result]:
        """What came of those that were started. Raises what EngineClient.deltas raises; cancelled, ends them all."""
        found: list[Result] = []
        while self._jobs:
            by_name = {job.request.id: Result() for job in self._jobs}
            async for delta in self.service.client.deltas(self._jobs):
                if delta.error:
                    raise bad(delta.error, code="generation_failed")
                by_name[delta.request].take(delta)
                self._cached[delta.request] = delta.cached
                if delta.finish_reason is not None:
                    self.watch.finished(delta.finish_reason)
            found += by_name.values()
            self._hand_over(self._slice)
        return found

    def _hand_over(self, count: int) -> None:
        now, self._waiting = self._waiting[:count], self._waiting[count:]
        self._jobs = self.service.client.submit(now) if now else []
        self._all += self._jobs

    # ---- after ----

    async def counted(self, answer: Awaitable[Value]) -> Value:
        """Waits for the answer that the passes are for; the request is counted by how that ends."""
        with self.watch.counted(self._usages):
            return await answer

    @property
    def num_sequences(self) -> int:
        """Passes that the engine was given."""
        return len(self._all)

    @property
    def usage(self) -> Usage:
        """Tokens of all of them."""
        parts = self._usages()
        prompt, cached = (
            sum(part.prompt_tokens for part in parts),
            sum(part.cached_tokens for part in parts),
        )
        return Usage(prompt, 0, cached)

    def _usages(self) -> list[Usage]:
        requests = [job.request for job in self._all]
        return [Usage(len(request.prompt), 0, self._cached.get(request.id, 0)) for request in requests]

    def cost(self) -> dict[str, int]:
        """`usage` as OpenAI writes it."""
        count = self.usage.prompt_tokens
        return {"prompt_tokens": count, "total_tokens": count}

    def head(self, kind: str) -> dict[str, Any]:
        """What an answer begins with."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def softmax(values: Sequence[float]) -> list[float]:
    """Shares that add up to 1, in proportion to exp(value)."""
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / math.fsum(powers) for power in powers]


def tracked(result: Result, tokens: Iterable[int]) -> list[float]:
    """Log-probabilities of these tokens after the prompt."""
    assert result.next is not None
    values = dict(result.next.top)
    return [values[token] for token in tokens]


def _begin_alike(requests: Sequence[Request]) -> bool:
    """Whether there are several, and all prompts share their first LEAD_TOKENS tokens."""
    begin = requests[0].prompt[:LEAD_TOKENS]
    alike = all(request.prompt[:LEAD_TOKENS] == begin for request in requests)
    return alike and len(requests) > 1 and len(begin) == LEAD_TOKENS
