"""POST /v1/chat/completions: the answer to a conversation, whose prompt the model's template makes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from headrace.server.errors import bad
from headrace.server.logprobs import Names, of_chat, of_prompt
from headrace.server.schema import MAX_TOP_LOGPROBS, ChatRequest, check_common
from headrace.server.service import Call, Service
from headrace.server.usage import usage
from headrace.text.reply import Chunk, Sample

RESERVED = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "chat_template",
        "tokenize",
        "tokenizer",
        "self",
    }
)
"""Variables of a template that chat_template_kwargs cannot set."""
MAX_OPTIONS = 32


class Chat:
    """One request, checked and under way."""

    def __init__(self, service: Service, body: ChatRequest, call: Call) -> None:
        self._service, self._body, self.call = service, body, call
        self._created = int(time.time())
        self._names = Names(service.tokenizer, body.return_tokens_as_token_ids)

    @classmethod
    async def start(cls, service: Service, body: ChatRequest, id: str) -> Chat:
        """Raises ApiError."""
        _check(body)
        prompt = await service.encode_chat(
            body.messages,
            add_generation_prompt=body.add_generation_prompt is not False,
            **(body.chat_template_kwargs or {}),
        )
        fields = await service.grammar(body)
        if body.logprobs:
            fields["logprobs"] = body.top_logprobs or 0
        if body.max_completion_tokens is not None:
            fields["max_tokens"] = body.max_completion_tokens
        params = service.params(body, len(prompt.ids), None, **fields)
        return cls(service, body, service.start(id, [prompt], params, body))

    async def answer(self) -> dict[str, Any]:
        """The whole answer."""
        [output] = await self.call.finish()
        choices = [self._choice(index, sample) for index, sample in enumerate(output.samples)]
        fields: dict[str, Any] = {}
        if self._body.prompt_logprobs is not None:
            fields["prompt_logprobs"] = of_prompt(
                output.prompt_token_ids, output.prompt_logprobs, self._names
            )
        if self._body.return_token_ids:
            fields["prompt_token_ids"] = list(output.prompt_token_ids)
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage(), **fields}

    async def stream(self) -> AsyncIterator[dict[str, Any]]:
        """The answer in pieces."""
        options = self._body.stream_options
        for index in range(self._body.n or 1):
            yield self._piece(index, {"role": "assistant", "content": ""}, {})
        async for _, chunk in self.call.chunks():
            yield self._piece(
                chunk.index, {"content": self._text(chunk.text, chunk.stop)}, self._delta(chunk)
            )
        if options is not None and options.include_usage:
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}

    def _piece(self, index: int, delta: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **fields}
        piece = {**self._head("chat.completion.chunk"), "choices": [choice]}
        options = self._body.stream_options
        if options is not None and options.continuous_usage_stats:
            piece["usage"] = self._usage()
        return piece

    def _delta(self, chunk: Chunk) -> dict[str, Any]:
        fields: dict[str, Any] = {"finish_reason": chunk.finish_reason}
        if chunk.stop is not None:
            fields["stop_reason"] = chunk.stop
        if self._body.logprobs:
            fields["logprobs"] = of_chat(chunk.logprobs, self._names)
        if self._body.return_token_ids:
            fields["token_ids"] = list(chunk.token_ids)
        return fields

    def _choice(self, index: int, sample: Sample) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if self._body.return_token_ids:
            fields["token_ids"] = list(sample.token_ids)
        return {
            "index": index,
            "message": {
                "role": "assistant",
                "content": self._text(sample.text, sample.stop),
                "refusal": None,
            },
            "logprobs": of_chat(sample.logprobs, self._names) if self._body.logprobs else None,
            "finish_reason": sample.finish_reason,
            "stop_reason": sample.stop,
            **fields,
        }

    def _text(self, text: str, stop: str | None) -> str:
        return text + stop if stop is not None and self._body.include_stop_str_in_output else text

    def _usage(self) -> dict[str, Any]:
        return usage([reply.usage for reply in self.call.replies])

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.call.id, "object": kind, "created": self._created, "model": self._service.name}


def _check(body: ChatRequest) -> None:
    check_common(body)
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise bad("max_tokens and max_completion_tokens are two names for one thing: give one", "max_tokens")
    if body.top_logprobs is not None:
        if not body.logprobs:
            raise bad("top_logprobs is only for logprobs=true", "top_logprobs")
        if not 0 <= body.top_logprobs <= MAX_TOP_LOGPROBS:
            raise bad(
                f"top_logprobs={body.top_logprobs} must be between 0 and {MAX_TOP_LOGPROBS}", "top_logprobs"
            )
    options = body.chat_template_kwargs or {}
    taken = sorted(RESERVED & set(options))
    if taken or len(options) > MAX_OPTIONS or not all(name.isidentifier() for name in options):
        raise bad(
            f"chat_template_kwargs: at most {MAX_OPTIONS} names, none of {', '.join(sorted(RESERVED))}",
            "chat_template_kwargs",
        )
