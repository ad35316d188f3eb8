"""POST /v1/completions: prompts continued, as text or token ids; with `echo`, they come back scored."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from headrace.server.answer import Answer
from headrace.server.errors import bad
from headrace.server.logprobs import OfCompletion, of_prompt
from headrace.server.schema import (
    DEFAULT_MAX_TOKENS,
    MAX_N,
    MAX_TOP_LOGPROBS,
    CompletionRequest,
    check_common,
    prompts_of,
)
from headrace.server.service import Call, Prompt, Service
from headrace.text.reply import Chunk, Output
from headrace.types import Logprob

KIND = "text_completion"


class Completion(Answer):
    """One request."""

    def __init__(self, service: Service, body: CompletionRequest, call: Call) -> None:
        super().__init__(service, body, call, silent=body.max_tokens == 0)
        self._body = body
        self._samples = body.n or 1
        self._logprobs: dict[int, OfCompletion] = {}

    @classmethod
    async def start(cls, service: Service, body: CompletionRequest, id: str) -> Completion:
        """Raises ApiError."""
        _check(body)
        prompts = [
            service.cut(await _prompt(service, body, prompt), body) for prompt in prompts_of(body.prompt)
        ]
        fields = await service.grammar(body)
        if body.logprobs is not None:
            fields["logprobs"] = body.logprobs
            if body.echo:
                fields["prompt_logprobs"] = body.logprobs
        if body.max_tokens == 0:
            fields["max_tokens"] = 1
        if body.best_of is not None:
            fields |= {"n": body.best_of, "logprobs": body.logprobs or 0}
        params = service.params(
            body, max(len(prompt.ids) for prompt in prompts), DEFAULT_MAX_TOKENS, **fields
        )
        return cls(service, body, service.start(id, prompts, params, body))

    async def answer(self) -> dict[str, Any]:
        """The whole answer."""
        outputs = await self.call.finish()
        choices = [
            self._choice(place * self._samples + rank, index, output)
            for place, output in enumerate(outputs)
            for rank, index in enumerate(_best(output, self._samples))
        ]
        return {**self.head(KIND), "choices": choices, **self.cost()}

    async def stream(self) -> AsyncIterator[dict[str, Any]]:
        """The answer in pieces."""
        echoed: set[int] = set()
        async with aclosing(self.call.chunks()) as chunks:
            async for place, chunk in chunks:
                choice = place * self._samples + chunk.index
                if self._body.echo and choice not in echoed:
                    echoed.add(choice)
                    yield self.piece(KIND, {"index": choice, **self._echo(place, choice)})
                yield self.piece(KIND, {"index": choice, **self._delta(choice, chunk)})
        for event in self.last(KIND):
            yield event

    def _echo(self, place: int, choice: int) -> dict[str, Any]:
        """The prompt, as the first piece of a choice."""
        reply = self.call.replies[place]
        output = reply.output()
        fields: dict[str, Any] = {"text": self._prompt_text(output)}
        if self._body.logprobs is not None:
            fields["logprobs"] = self._scored(choice)(output.prompt_token_ids, _of_prompt(output))
        return fields

    def _delta(self, choice: int, chunk: Chunk) -> dict[str, Any]:
        if self.silent:
            return {"text": "", "finish_reason": "length" if chunk.finish_reason else None}
        fields = {"text": self.text(chunk.text, chunk.stop), **self.ending(chunk)}
        if self._body.logprobs is not None:
            fields["logprobs"] = self._scored(choice)(chunk.token_ids, chunk.logprobs)
        return fields

    def _choice(self, choice: int, index: int, output: Output) -> dict[str, Any]:
        sample = output.samples[index]
        tokens, items = sample.token_ids, list[Logprob | None](sample.logprobs)
        text, reason = self.text(sample.text, sample.stop), sample.finish_reason
        if self.silent:
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
            fields["prompt_logprobs"] = of_prompt(output.prompt_token_ids, output.prompt_logprobs, self.names)
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
            self.service.tokenizer.decode(output.prompt_token_ids) if output.prompt is None else output.prompt
        )

    def _scored(self, choice: int) -> OfCompletion:
        """The choice's log-probabilities, which know how far its text goes."""
        if choice not in self._logprobs:
            count = (self._body.logprobs or 0) + len(self._body.logprob_token_ids or ())
            self._logprobs[choice] = OfCompletion(
                self.service.tokenizer,
                self.names,
                count,
                skip_special=self._body.skip_special_tokens is not False,
            )
        return self._logprobs[choice]


def _best(output: Output, count: int) -> list[int]:
    """Which samples to show: all of them as they are, or the `count` with the highest mean log-probability first."""

    def mean(index: int) -> float:
        items = output.samples[index].logprobs
        return sum(item.logprob for item in items) / max(len(items), 1)

    every = list(range(len(output.samples)))
    return every if count == len(every) else sorted(every, key=mean, reverse=True)[:count]


async def _prompt(service: Service, body: CompletionRequest, prompt: str | list[int]) -> Prompt:
    if not isinstance(prompt, str):
        return Prompt(prompt)
    special, commands = body.add_special_tokens is not False, bool(body.parse_special)
    return Prompt(await service.encode(prompt, add_special=special, parse_special=commands), prompt)


def _of_prompt(output: Output) -> list[Logprob | None]:
    return [None, *output.prompt_logprobs]


def _check(body: CompletionRequest) -> None:
    check_common(body)
    samples = body.n or 1
    if body.best_of is not None and not samples <= body.best_of <= MAX_N:
        raise bad(f"best_of={body.best_of} must be at least n={samples} and at most {MAX_N}", "best_of")
    if (body.best_of or 1) > 1 and body.temperature == 0:
        raise bad("best_of with temperature=0: equal samples, of which none is the best", "best_of")
    if body.best_of is not None and body.best_of > samples and body.stream:
        raise bad("best_of above n is not for stream=true: the best is known at the end", "best_of")
    if body.logprobs is not None and not 0 <= body.logprobs <= MAX_TOP_LOGPROBS:
        raise bad(f"logprobs={body.logprobs} must be between 0 and {MAX_TOP_LOGPROBS}", "logprobs")
    if body.max_tokens == 0 and not body.echo:
        raise bad("max_tokens=0 is for echo=true: otherwise nothing would come back", "max_tokens")
    if body.echo and body.prompt_logprobs is not None:
        raise bad("echo and prompt_logprobs say the same thing: ask for one of them", "prompt_logprobs")
