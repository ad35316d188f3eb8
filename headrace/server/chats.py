"""POST /v1/chat/completions: the answer to a conversation, whose prompt the model's template makes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from headrace.server.answer import Answer
from headrace.server.errors import bad
from headrace.server.logprobs import of_chat, of_prompt
from headrace.server.schema import MAX_TOP_LOGPROBS, ChatRequest, check_common
from headrace.server.service import Call, Service
from headrace.server.tools import Deltas, Offer, message_of
from headrace.text.reply import Sample

RESERVED = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "add_special_tokens",
        "chat_template",
        "tokenize",
        "tokenizer",
        "self",
    }
)
"""Variables of a template that chat_template_kwargs cannot set."""
MAX_OPTIONS = 32
PIECE = "chat.completion.chunk"


class Chat(Answer):
    """One request."""

    def __init__(self, service: Service, body: ChatRequest, call: Call, offer: Offer | None) -> None:
        super().__init__(service, body, call)
        self._body, self._offer = body, offer

    @classmethod
    async def start(cls, service: Service, body: ChatRequest, id: str) -> Chat:
        """Raises ApiError."""
        _check(body)
        offer = service.tools.offer(body)
        options = _template_options(body)
        prompt = service.cut(await service.encode_chat(body.messages, offer, **options), body)
        fields = await service.grammar(body, offer)
        if body.logprobs:
            fields["logprobs"] = body.top_logprobs or 0
        if body.max_completion_tokens is not None:
            fields["max_tokens"] = body.max_completion_tokens
        params = service.params(body, len(prompt.ids), None, **fields)
        shown = offer.marks if offer else frozenset()
        made = cls(service, body, service.start(id, [prompt], params, body, shown), offer)
        template = service.template if offer is None else offer.template
        made.ignored = [name for name in _extra(body) if name not in template.variables]
        return made

    async def answer(self) -> dict[str, Any]:
        """The whole answer."""
        [output] = await self.call.finish()
        choices = [self._choice(index, sample) for index, sample in enumerate(output.samples)]
        fields: dict[str, Any] = {}
        if self._body.prompt_logprobs is not None:
            fields["prompt_logprobs"] = of_prompt(output.prompt_token_ids, output.prompt_logprobs, self.names)
        if self._body.return_token_ids:
            fields["prompt_token_ids"] = list(output.prompt_token_ids)
        return {**self.head("chat.completion"), "choices": choices, **self.cost(), **fields}

    async def stream(self) -> AsyncIterator[dict[str, Any]]:
        """The answer in pieces."""
        said = [Deltas(self._offer) for _ in range(self._body.n or 1)]
        for index in range(len(said)):
            yield self.piece(PIECE, {"index": index, "delta": {"role": "assistant", "content": ""}})
        async with aclosing(self.call.chunks()) as chunks:
            async for _, chunk in chunks:
                *deltas, last = said[chunk.index].take(self.text(chunk.text, chunk.stop), chunk.finish_reason)
                for delta in deltas:
                    yield self.piece(PIECE, {"index": chunk.index, "delta": delta})
                choice = {"index": chunk.index, "delta": last, **self.ending(chunk)}
                choice["finish_reason"] = said[chunk.index].finish_reason
                if self._body.logprobs:
                    choice["logprobs"] = of_chat(chunk.logprobs, self.names)
                yield self.piece(PIECE, choice)
        for event in self.last(PIECE):
            yield event

    def _choice(self, index: int, sample: Sample) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if self._body.return_token_ids:
            fields["token_ids"] = list(sample.token_ids)
        text = self.text(sample.text, sample.stop)
        said, reason = message_of(self._offer, text, sample.finish_reason)
        return {
            "index": index,
            "message": {"role": "assistant", "refusal": None, **said},
            "logprobs": of_chat(sample.logprobs, self.names) if self._body.logprobs else None,
            "finish_reason": reason,
            "stop_reason": sample.stop,
            **fields,
        }


def _extra(body: ChatRequest) -> dict[str, Any]:
    """Variables of the template that only some read."""
    effort = {} if body.reasoning_effort is None else {"reasoning_effort": body.reasoning_effort}
    return {**(body.chat_template_kwargs or {}), **effort}


def _template_options(body: ChatRequest) -> dict[str, Any]:
    """How the template is to write the prompt."""
    goes_on = bool(body.continue_final_message)
    return _extra(body) | {
        "add_generation_prompt": body.add_generation_prompt is not False and not goes_on,
        "continue_final_message": goes_on,
        "add_special_tokens": bool(body.add_special_tokens),
        "documents": body.documents,
    }


def _check(body: ChatRequest) -> None:
    check_common(body)
    if body.continue_final_message and body.add_generation_prompt:
        raise bad(
            "continue_final_message goes on with the last message, and add_generation_prompt begins another: give one",
            "continue_final_message",
        )
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
