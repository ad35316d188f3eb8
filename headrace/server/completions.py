"""POST /v1/completions: prompts continued, as text or token ids; with `echo`, they come back scored."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from headrace.server.errors import bad
from headrace.server.logprobs import Names, OfCompletion, of_prompt
from headrace.server.schema import (
    DEFAULT_MAX_TOKENS,
    MAX_TOP_LOGPROBS,
    CompletionRequest,
    check_common,
    prompts_of,
)
from headrace.server.service import Call, Prompt, Service
from headrace.server.usage import usage
from headrace.text.reply import Chunk, Output
from headrace.types import Logprob


class Completion:
    """One request, checked and under way."""

    def __init__(self, service: Service, body: CompletionRequest, call: Call, max_tokens: int | None) -> None:
        self._service, self._body, self.call = service, body, call
        self._samples = body.n or 1
        self._created = int(time.time())
        self._silent = max_tokens == 0  # the engine gave one token, which nobody asked for
        self._names = Names(service.tokenizer, body.return_tokens_as_token_ids)
        self._logprobs: dict[int, OfCompletion] = {}

    @classmethod
    async def start(cls, service: Service, body: CompletionRequest, id: str) -> Completion:
        """Raises ApiError."""
        _check(body)
        special = body.add_special_tokens is not False
        prompts = [
            Prompt(await service.encode(prompt, add_special=special), prompt)
            if isinstance(prompt, str)
            else Prompt(prompt)
            for prompt in prompts_of(body.prompt)
        ]
        fields = await service.grammar(body)
        if body.logprobs is not None:
            fields["logprobs"] = body.logprobs
            if body.echo:
                fields["prompt_logprobs"] = body.logprobs
        if body.max_tokens == 0:
            fields["max_tokens"] = 1
        params = service.params(
            body, max(len(prompt.ids) for prompt in prompts), DEFAULT_MAX_TOKENS, **fields
        )
        return cls(service, body, service.start(id, prompts, params, body), body.max_tokens)

    async def answer(self) -> dict[str, Any]:
        """The whole answer."""
        outputs = await self.call.finish()
        choices = [
            self._choice(place, index, output)
            for place, output in enumerate(outputs)
            for index in range(len(output.samples))
        ]
        return {**self._head(), "choices": choices, "usage": self._usage()}

    async def stream(self) -> AsyncIterator[dict[str, Any]]:
        """The answer in pieces."""
        body = self._body
        options = body.stream_options
        echoed: set[int] = set()
        async for place, chunk in self.call.chunks():
            choice = place * self._samples + chunk.index
            if body.echo and choice not in echoed:
                echoed.add(choice)
                yield self._piece(choice, self._echo(place, choice), options)
            yield self._piece(choice, self._delta(choice, chunk), options)
        if options is not None and options.include_usage:
            yield {**self._head(), "choices": [], "usage": self._usage()}

    def _piece(self, choice: int, fields: dict[str, Any], options: Any) -> dict[str, Any]:
        piece = {
            **self._head(),
            "choices": [{"index": choice, "logprobs": None, "finish_reason": None, **fields}],
        }
        if options is not None and options.continuous_usage_stats:
            piece["usage"] = self._usage()
        return piece

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.call.id,
            "object": "text_completion",
            "created": self._created,
            "model": self._service.name,
        }

    def _usage(self) -> dict[str, Any]:
        return usage([reply.usage for reply in self.call.replies], silent=self._silent)

    def _echo(self, place: int, choice: int) -> dict[str, Any]:
        """The prompt, as the first piece of a choice."""
        reply = self.call.replies[place]
        output = reply.output()
        fields: dict[str, Any] = {"text": self._prompt_text(output)}
        if self._body.logprobs is not None:
            fields["logprobs"] = self._scored(choice)(output.prompt_token_ids, _of_prompt(output))
        return fields

    def _delta(self, choice: int, chunk: Chunk) -> dict[str, Any]:
        if self._silent:
            return {"text": "", "finish_reason": "length" if chunk.finish_reason else None}
        fields: dict[str, Any] = {"text": chunk.text, "finish_reason": chunk.finish_reason}
        if chunk.stop is not None:
            fields["stop_reason"] = chunk.stop
            if self._body.include_stop_str_in_output:
                fields["text"] += chunk.stop
        if self._body.logprobs is not None:
            fields["logprobs"] = self._scored(choice)(chunk.token_ids, chunk.logprobs)
        if self._body.return_token_ids:
            fields["token_ids"] = list(chunk.token_ids)
        return fields

    def _choice(self, place: int, index: int, output: Output) -> dict[str, Any]:
        sample, choice = output.samples[index], place * self._samples + index
        tokens, items = sample.token_ids, list[Logprob | None](sample.logprobs)
        text, reason = sample.text, sample.finish_reason
        if self._body.include_stop_str_in_output and sample.stop is not None:
            text += sample.stop
        if self._silent:
            text, tokens, items, reason = "", (), [], "length"
        fields: dict[str, Any] = {}
        if self._body.echo:
            text = self._prompt_text(output) + text
        if self._body.logprobs is not None:
            before = (output.prompt_token_ids, _of_prompt(output)) if self._body.echo else ((), [])
            fields["logprobs"] = self._scored(choice)((*before[0], *tokens), [*before[1], *items])
        if self._body.return_token_ids:
            fields |= {"token_ids": list(tokens), "prompt_token_ids": list(output.prompt_token_ids)}
        if self._body.prompt_logprobs is not None:
            fields["prompt_logprobs"] = of_prompt(
                output.prompt_token_ids, output.prompt_logprobs, self._names
            )
        return {
            "index": choice,
            "text": text,
            "logprobs": None,
            "finish_reason": reason,
            "stop_reason": sample.stop,
            **fields,
        }

    def _prompt_text(self, output: Output) -> str:
        return (
            self._service.tokenizer.decode(output.prompt_token_ids)
            if output.prompt is None
            else output.prompt
        )

    def _scored(self, choice: int) -> OfCompletion:
        """The choice's log-probabilities, which know how far its text goes."""
        if choice not in self._logprobs:
            count = self._body.logprobs or 0
            self._logprobs[choice] = OfCompletion(
                self._service.tokenizer,
                self._names,
                count,
                skip_special=self._body.skip_special_tokens is not False,
            )
        return self._logprobs[choice]


def _of_prompt(output: Output) -> list[Logprob | None]:
    return [None, *output.prompt_logprobs]


def _check(body: CompletionRequest) -> None:
    check_common(body)
    if body.suffix:
        raise bad("suffix is not supported: this model continues a prompt, it does not fill a gap", "suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise bad(
            f"best_of={body.best_of} must equal n={body.n or 1}: samples are not ranked here", "best_of"
        )
    if body.logprobs is not None and not 0 <= body.logprobs <= MAX_TOP_LOGPROBS:
        raise bad(f"logprobs={body.logprobs} must be between 0 and {MAX_TOP_LOGPROBS}", "logprobs")
    if body.max_tokens == 0 and not body.echo:
        raise bad("max_tokens=0 is for echo=true: otherwise nothing would come back", "max_tokens")
    if body.echo and body.prompt_logprobs is not None:
        raise bad("echo and prompt_logprobs say the same thing: ask for one of them", "prompt_logprobs")
