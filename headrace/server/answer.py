"""What answers of both endpoints share: how they begin, how a piece of one ends, and what it cost."""

from __future__ import annotations

import time
from typing import Any

from headrace.server.logprobs import Names
from headrace.server.schema import Generate
from headrace.server.service import Call, Service
from headrace.text.reply import Chunk


class Answer:
    """One request, checked and under way."""

    def __init__(self, service: Service, body: Generate, call: Call, *, silent: bool = False) -> None:
        """silent: the engine gives one token, which nobody asked for, and which is not counted."""
        self.service, self.call = service, call
        self.names = Names(service.tokenizer, body.return_tokens_as_token_ids)
        self.silent = silent
        self.ignored: list[str] = []
        """What was asked and has no effect."""
        self._asked = body
        self._created = int(time.time())

    def head(self, kind: str) -> dict[str, Any]:
        """What every object of this answer begins with."""
        model = self._asked.model or self.service.name
        return {"id": self.call.id, "object": kind, "created": self._created, "model": model}

    def piece(self, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
        """One event of a stream."""
        event = {**self.head(kind), "choices": [{"logprobs": None, "finish_reason": None, **choice}]}
        options = self._asked.stream_options
        if choice.get("finish_reason") or self._asked.timings_per_token:
            event["timings"] = self.timings()
        return event | ({"usage": self.usage()} if options and options.continuous_usage_stats else {})

    def last(self, kind: str) -> list[dict[str, Any]]:
        """The event after the others, if the client wants it: what all of it cost."""
        options = self._asked.stream_options
        wanted = options and options.include_usage
        return [{**self.head(kind), "choices": [], **self.cost()}] if wanted else []

    def ending(self, chunk: Chunk) -> dict[str, Any]:
        """What a piece says beside its text and log-probabilities."""
        fields: dict[str, Any] = {"finish_reason": chunk.finish_reason}
        if chunk.stop is not None:
            fields["stop_reason"] = chunk.stop
        if self._asked.return_token_ids:
            fields["token_ids"] = list(chunk.token_ids)
        return fields

    def text(self, text: str, stop: str | None) -> str:
        """With the stop string that ended it, if the client wants to see it."""
        return text + stop if stop is not None and self._asked.include_stop_str_in_output else text

    def cost(self) -> dict[str, Any]:
        """Of everything so far."""
        return {"usage": self.usage(), "timings": self.timings()}

    def usage(self) -> dict[str, Any]:
        """Tokens of all prompts and samples so far, as OpenAI counts them."""
        prompt, answer, cached = self._tokens()
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": cached}
            | ({"dropped_tokens": self._dropped} if self._dropped else {}),
        }

    def timings(self) -> dict[str, Any]:
        """The same in llama.cpp's words, with the time that it took: `prompt_ms` goes from the request to the first
        token, the wait in the queue included; `predicted_ms` from there to the last one."""
        prompt, answer, cached = self._tokens()
        times = [reply.times for reply in self.call.replies]
        asked, first = min(t.asked for t in times), min(t.first for t in times)
        found: dict[str, Any] = {"cache_n": cached}
        parts = (
            ("prompt", prompt - cached - self._dropped, first - asked),
            ("predicted", answer, max(t.last for t in times) - first),
        )
        for name, count, seconds in parts:
            found |= {
                f"{name}_n": count,
                f"{name}_ms": seconds * 1e3,
                f"{name}_per_token_ms": seconds * 1e3 / count if count else None,
                f"{name}_per_second": count / seconds if seconds else None,
            }
        return found

    @property
    def _dropped(self) -> int:
        """Tokens of the prompts that a shrinker left out."""
        return self.call.usage.dropped_tokens

    def _tokens(self) -> tuple[int, int, int]:
        """Of the prompts, of the answers, and those of the prompts that the prefix cache had."""
        usage = self.call.usage
        return usage.prompt_tokens, 0 if self.silent else usage.completion_tokens, usage.cached_tokens
