"""From what a client asked to what the engine runs, and back: prompts, parameters, and replies as text.

Knows no HTTP. Everything here belongs to the event loop of the API process; long texts are encoded in a thread.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import cached_property
from typing import Any, TypeVar

from headrace.params import SamplingParams
from headrace.server import grammars
from headrace.server.client import EngineClient, Job
from headrace.server.errors import ApiError, bad
from headrace.server.grammars import Checker
from headrace.server.metrics import Metrics
from headrace.server.schema import MAX_PROMPTS, Common, Generate, sampling_fields
from headrace.server.templates import Templates
from headrace.server.tools import Offer, Tools
from headrace.server.watch import Watch
from headrace.text.chat import ChatTemplate
from headrace.text.reply import Chunk, Output, Reply, Usage
from headrace.text.tokenizer import Tokenizer
from headrace.types import Pooling, Request

_INLINE_CHARS = 2048
"""Texts up to this long are encoded at once: handing them to a thread takes longer."""
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Token ids, and the text that they came from, if any."""

    ids: Sequence[int]
    text: str | None = None


class Call:
    """The prompts of one HTTP request, under way."""

    def __init__(
        self, service: Service, id: str, jobs: list[Job], replies: list[Reply], began: float
    ) -> None:
        """began: on the clock of time.perf_counter, before the jobs were handed over."""
        self.id, self.model = id, jobs[0].request.adapter or service.name
        self.replies = replies
        self.params = jobs[0].request.params
        self.watch = Watch(service.metrics, jobs, began)
        self._service, self._jobs = service, jobs
        self._place = {job.request.id: i for i, job in enumerate(jobs)}

    async def chunks(self) -> AsyncGenerator[tuple[int, Chunk], None]:
        """(prompt, what came of it), until every sample has ended. Raises what EngineClient.deltas raises.

        Whoever stops listening cancels what is left.
        """
        client, watch = self._service.client, self.watch
        with watch.counted(lambda: [reply.usage for reply in self.replies]):
            async with aclosing(client.deltas(self._jobs)) as deltas:
                async for delta in deltas:
                    if delta.error:
                        raise bad(delta.error, code="generation_failed")
                    place = self._place[delta.request]
                    reply = self.replies[place]
                    at = time.perf_counter()
                    chunk = reply.take(delta, at)
                    if delta.tokens:
                        watch.tokens(place, delta.index, len(delta.tokens))
                    if chunk is None:
                        continue
                    if chunk.finish_reason is not None and delta.finish_reason is None:
                        client.cancel(self._jobs[place], delta.index)
                    if chunk.finish_reason is not None:
                        watch.finished(chunk.finish_reason)
                    yield place, chunk

    def abandon(self) -> None:
        """Nobody listens any longer, or ever did. Harmless where it has ended."""
        if not self.watch.outcome:
            for job in self._jobs:
                self._service.client.cancel(job)
            self.watch.end("cancelled", [reply.usage for reply in self.replies])

    @property
    def num_sequences(self) -> int:
        """Samples of all prompts."""
        return self.params.n * len(self.replies)

    @property
    def usage(self) -> Usage:
        """Tokens of all prompts and samples so far."""
        parts = [reply.usage for reply in self.replies]
        return Usage(
            sum(part.prompt_tokens for part in parts),
            sum(part.completion_tokens for part in parts),
            sum(part.cached_tokens for part in parts),
            sum(part.dropped_tokens for part in parts),
        )

    async def finish(self) -> list[Output]:
        """Everything, once it is there."""
        async for _ in self.chunks():
            pass
        return [reply.output() for reply in self.replies]


class Service:
    """One model, as clients see it."""

    def __init__(self, client: EngineClient, name: str, metrics: Metrics, tool_parser: str = "") -> None:
        """The engine must be ready. `name`: what clients call the model. `tool_parser`: the format of its tool calls;
        if empty, the template tells. Raises ConfigError if the model is not shown tools, and a format was named.
        """
        assert client.ready is not None
        self.client, self.name, self.metrics = client, name, metrics
        self.context, self.vocab = client.ready.context, client.ready.vocab
        self.width = client.ready.width
        self.defaults = client.ready.defaults
        self.tokenizer = Tokenizer(client.ready.path)
        self._templates = Templates(client.ready.path)
        self.tools = Tools(self.tokenizer, tool_parser)
        self._checker = Checker(client.ready.path, client.ready.grammar, self.vocab, client.ready.eos)
        self.started = int(time.time())
        self._ids = itertools.count()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="text")

    @cached_property
    def template(self) -> ChatTemplate:
        """What is asked about it; it is rendered elsewhere. Raises ModelError if the model has none."""
        return ChatTemplate.load(self.tokenizer.folder)

    @cached_property
    def has_template(self) -> bool:
        """Whether chats can be made into prompts."""
        folder = self.tokenizer.folder
        return "chat_template" in self.tokenizer.config or (folder / "chat_template.jinja").is_file()

    def check_model(self, asked: str | None) -> str:
        """The adapter that `asked` names, by itself or behind the model and a colon; empty for this model, or nothing.
        Raises ApiError for anything else."""
        if asked is None or asked == self.name:
            return ""
        adapter = asked.removeprefix(f"{self.name}:")
        if adapter not in self.client.adapters:
            text = f"no model called {asked[:200]!r} is served here: ask for {self.name!r}"
            raise ApiError(404, "model_not_found", text, param="model")
        return adapter

    async def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text; special tokens that it spells are taken as text, unless they are to be parsed."""
        return await self._off_loop(
            len(text),
            lambda: self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special),
        )

    async def encode_chat(
        self, messages: Sequence[dict[str, Any]], offer: Offer | None = None, **options: Any
    ) -> Prompt:
        """The prompt that the model's template makes of messages, and of the tools on offer."""
        messages = self.tools.history(messages)
        if offer is not None:
            options["tools"] = offer.shown
        text, ids = await self._templates.encode(messages, **options)
        return Prompt(ids, text)

    def cut(self, prompt: Prompt, body: Generate) -> Prompt:
        """The prompt, no longer than the client says; nothing is cut unless it does."""
        most = body.truncate_prompt_tokens
        if most == -1:
            most = max(self.context - (body.max_tokens or 1), 1)
        if most is None or len(prompt.ids) <= most:
            return prompt
        return Prompt(prompt.ids[:most] if body.truncation_side == "right" else prompt.ids[-most:])

    def _bad_words(self, body: Generate) -> set[tuple[int, ...]]:
        """The tokens that spell a word, after a space and without."""
        texts = [text for word in body.bad_words or () for text in (word.lstrip(" "), " " + word.lstrip(" "))]
        return {tuple(self.tokenizer.encode(text, add_special=False, parse_special=False)) for text in texts}

    async def grammar(self, body: Generate, offer: Offer | None = None) -> dict[str, Any]:
        """The field of SamplingParams for the form that a body asks for, compiled once to see that it can be."""
        asked = grammars.of(body)
        if offer is not None:
            if asked is not None:
                raise bad(
                    f"{asked[1]} and tools each ask for a form: give one, or tool_choice none", asked[1]
                )
            asked = (offer.grammar, "tools") if offer.grammar is not None else None
        if asked is None:
            return {}
        if not self.client.ready or not self.client.ready.eos:
            raise bad("this model has no end token, so no output in a form could end", asked[1])
        await self._checker.check(*asked)
        return {"grammar": asked[0]}

    async def _off_loop(self, size: int, work: Callable[[], Result]) -> Result:
        if size <= _INLINE_CHARS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def params(self, body: Generate, longest: int, default_max: int | None, **fields: Any) -> SamplingParams:
        """What the client asked, and the model's own defaults for the rest. `longest`: tokens of its longest prompt.

        Raises ApiError, also if prompt and max_tokens exceed the context: nothing is cut silently.
        """
        given = {**sampling_fields(body), **fields}
        if body.bad_words:
            given["bad_words_ids"] = [*given.get("bad_words_ids", ()), *sorted(self._bad_words(body))]
        if longest >= self.context:
            raise bad(
                f"the prompt has {longest} tokens, and the context of {self.context} must hold at least one more: "
                "shorten the prompt",
                "messages" if default_max is None else "prompt",
                "context_length_exceeded",
            )
        asked = given.get("max_tokens")
        if asked is not None and longest + asked > self.context:
            raise bad(
                f"the prompt has {longest} tokens and max_tokens={asked}: together {longest + asked}, and the context "
                f"holds {self.context}",
                "max_tokens",
                "context_length_exceeded",
            )
        if asked is None and default_max is not None:
            given["max_tokens"] = min(default_max, self.context - longest)
        try:
            return SamplingParams(**{**self.defaults, **given})
        except ValueError as error:
            word = re.match(r"\w+", str(error))
            raise bad(str(error), word[0] if word and word[0] in given else None) from None

    def request(
        self,
        name: str,
        ids: Sequence[int],
        params: SamplingParams,
        body: Common,
        *,
        pooling: Pooling | None = None,
        where: str = "",
    ) -> Request:
        """What the engine is to run. Raises ApiError, which begins with `where`, if it never could."""
        made = Request(
            id=name,
            prompt=tuple(ids),
            params=params,
            arrival=time.monotonic(),
            priority=body.priority or 0,
            salt=body.cache_salt or "",
            adapter=self.check_model(body.model),
            pooling=pooling,
        )
        why = made.misfit(self.context, self.vocab)
        if why:
            raise bad(where + why)
        return made

    def start(
        self,
        id: str,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        body: Generate,
        shown: frozenset[int] = frozenset(),
    ) -> Call:
        """Hands the prompts to the engine. `shown`: special tokens that are text in any case.

        Raises ApiError, Unavailable or QueueFull, and then none of them runs.
        """
        if len(prompts) * params.n > MAX_PROMPTS:
            raise bad(
                f"{len(prompts)} prompts with n={params.n}: at most {MAX_PROMPTS} samples per request", "n"
            )
        at = time.perf_counter()
        requests = [
            self.request(
                f"{id}/{next(self._ids)}",
                prompt.ids,
                params,
                body,
                where=f"prompt[{index}]: " if len(prompts) > 1 else "",
            )
            for index, prompt in enumerate(prompts)
        ]
        jobs = self.client.submit(requests)
        skip = body.skip_special_tokens is not False
        replies = [
            Reply(
                self.tokenizer, prompt.ids, params, prompt=prompt.text, at=at, skip_special=skip, shown=shown
            )
            for prompt in prompts
        ]
        return Call(self, id, jobs, replies, at)

    async def close(self) -> None:
        """Ends the thread, and the processes that render chats and check grammars."""
        await self._templates.close()
        await self._checker.close()
        self._thread.shutdown(wait=False, cancel_futures=True)
