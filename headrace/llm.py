"""LLM: the engine in this process, text in and text out."""

from __future__ import annotations

import dataclasses
import itertools
import struct
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from headrace.compose import user_slots
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError, nearest
from headrace.meter import ProgressBar
from headrace.params import SamplingParams
from headrace.text.choices import Score, continuation
from headrace.text.reply import Chunk, Output, Reply, Sample, Usage
from headrace.text.tokenizer import Tokenizer
from headrace.types import Pooling, PoolingKind, Request

if TYPE_CHECKING:
    from headrace.text.chat import ChatTemplate

__all__ = ["LLM", "Chunk", "Output", "Sample", "Score", "Usage"]

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]

_SAMPLING_FIELDS = {field.name for field in dataclasses.fields(SamplingParams)}


class LLM:
    """One model with one stack. Not for several threads; streams and batches may be interleaved in one.

    with LLM("tiny", policy="sarathi:tokens=32", kv_bytes=1 << 28) as llm:
        outputs = llm.generate(["def add(", "class Queue"], llm.sampling(max_tokens=32))
    """

    def __init__(self, model: str = "tiny", *, policy: str | None = None, **settings: Any) -> None:
        """`settings`: fields of EngineConfig, and slots by name with _ for - (kv_codec="plain").

        Raises ConfigError for a setting that does not exist (and names the nearest), ModelError for a folder that
        is not a model, ClashError for a stack that cannot run.
        """
        self._start(make_config(model=model, policy=policy, **settings))

    @classmethod
    def from_config(cls, config: EngineConfig) -> LLM:
        """The same from a config that exists already, e.g. from a TOML file."""
        llm = cls.__new__(cls)
        llm._start(config)
        return llm

    def _start(self, config: EngineConfig) -> None:
        with ProgressBar(None, "loading") as bar:
            self.engine = Engine(config, progress=bar.update)
        assert self.engine.path is not None
        self.tokenizer = Tokenizer(self.engine.path)
        self._replies: dict[str, Reply] = {}
        self._chunks: dict[str, deque[Chunk]] = {}  # of the streams among them, until they are fetched
        self._ids = itertools.count()

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's chat template. Raises ModelError if it has none."""
        from headrace.text.chat import ChatTemplate  # and jinja2: only for chats

        return ChatTemplate.load(self.tokenizer.folder)

    def sampling(self, **fields: Any) -> SamplingParams:
        """SamplingParams whose unnamed fields are the model's own defaults (its generation_config.json).

        Raises ConfigError for a field that does not exist and for a value out of range.
        """
        unknown = next((name for name in fields if name not in _SAMPLING_FIELDS), None)
        if unknown is not None:
            raise ConfigError(f"no sampling option called {unknown!r}; {nearest(unknown, _SAMPLING_FIELDS)}")
        try:
            return SamplingParams(**{**self.engine.defaults, **fields})
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str] = "",
        progress: bool | None = None,
    ) -> list[Output]:
        """Continues every prompt, text or token ids; the outputs are in the order of the prompts.

        `params`: one for all or one each; None is the model's own defaults. `adapter`: names from the setting
        `adapters`, one for all or one each; empty is the model alone. `progress`: a bar on stderr; None shows
        it on a terminal when it takes longer than two seconds. Prompts are never truncated: one that is too long
        raises ConfigError, and then nothing of the call goes on running.
        """
        texts: Sequence[Prompt] = [prompts] if isinstance(prompts, str) else prompts
        return self._run(self._requests([self._encode(text) for text in texts], params, adapter), progress)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str] = "",
        progress: bool | None = None,
        **options: Any,
    ) -> list[Output]:
        """Answers one conversation ([{"role": "user", "content": ...}, ...]) or several; `options` for the template."""
        several = bool(messages) and not isinstance(messages[0], Mapping) and not isinstance(messages, str)
        conversations: Any = messages if several else [messages]
        prompts = [
            self.template.encode(self.tokenizer, conversation, **options) for conversation in conversations
        ]
        return self._run(self._requests(prompts, params, adapter), progress)

    def embed(
        self,
        texts: str | Sequence[Prompt],
        *,
        pooling: PoolingKind = "last",
        normalize: bool = True,
        dimensions: int | None = None,
        adapter: str = "",
        progress: bool | None = None,
    ) -> list[tuple[float, ...]]:
        """One vector per text or list of token ids, pooled from the model's final hidden states.

        `dimensions` keeps the first ones, which only some models were trained for. Raises ConfigError for texts that
        do not fit, and then nothing of the call runs.
        """
        how = Pooling(kind=pooling, normalize=normalize, dimensions=dimensions)
        given: Sequence[Prompt] = [texts] if isinstance(texts, str) else texts
        encoded = [self._encode(text) for text in given]
        found = self._run(self._requests(encoded, SamplingParams(), adapter, how), progress)
        return [struct.unpack(f"<{len(output.embedding) // 4}f", output.embedding) for output in found]

    def score(
        self,
        prompt: Prompt,
        choices: Sequence[Prompt],
        *,
        adapter: str = "",
        progress: bool | None = None,
    ) -> list[Score]:
        """How likely each choice is as what follows the prompt: one forward pass each, nothing is generated.

        A text is encoded together with the prompt's if the prompt's tokens stay what they are; if not, alone.
        """
        text, ids = self._encode(prompt)
        wholes = []
        for place, choice in enumerate(choices):
            if not choice:
                raise ConfigError(f"choices[{place}] is empty: give at least one character, or one token")
            tokens: Sequence[int] | None = None
            if isinstance(choice, str) and text is not None:
                tokens = continuation(ids, self.tokenizer.encode(text + choice))
            elif not isinstance(choice, str):
                tokens = self._encode(choice)[1]
            if tokens is None:
                tokens = self.tokenizer.encode(str(choice), add_special=False)
            wholes.append((None, [*ids, *tokens]))
        params = SamplingParams(
            temperature=0, max_tokens=1, prompt_logprobs=0, prompt_logprobs_start=len(ids)
        )
        requests = self._requests(wholes, params, adapter)
        outputs = self._run(requests[:1], progress)  # the others find the prompt in the prefix cache
        outputs += self._run(requests[1:], progress)
        return [
            Score(output.prompt_token_ids[len(ids) :], tuple(item.logprob for item in output.prompt_logprobs))
            for output in outputs
        ]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, adapter: str = ""
    ) -> Iterator[Chunk]:
        """Continues one prompt and yields the text as it comes. Closing the iterator cancels the request."""
        [(request, text)] = self._requests([self._encode(prompt)], params, adapter)
        return self._stream(request, text)

    def stream_chat(
        self, messages: Messages, params: SamplingParams | None = None, *, adapter: str = "", **options: Any
    ) -> Iterator[Chunk]:
        """Answers one conversation and yields the text as it comes."""
        [(request, text)] = self._requests(
            [self.template.encode(self.tokenizer, messages, **options)], params, adapter
        )
        return self._stream(request, text)

    def close(self) -> None:
        """Frees the engine; the object cannot be used afterwards."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _requests(
        self,
        prompts: Sequence[tuple[str | None, Sequence[int]]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        adapters: str | Sequence[str] = "",
        pooling: Pooling | None = None,
    ) -> list[tuple[Request, str | None]]:
        """A request for each (text, token ids), and the text."""
        if params is None or isinstance(params, SamplingParams):
            params = [params or self.sampling()] * len(prompts)
        if len(params) != len(prompts):
            raise ConfigError(
                f"{len(prompts)} prompts but {len(params)} sampling params: give one, or one per prompt"
            )
        names = [adapters] * len(prompts) if isinstance(adapters, str) else adapters
        if len(names) != len(prompts):
            raise ConfigError(
                f"{len(prompts)} prompts but {len(names)} adapters: give one, or one per prompt"
            )
        made = [
            (
                Request(
                    id=f"llm-{next(self._ids)}",
                    prompt=tuple(tokens),
                    params=one,
                    adapter=name,
                    pooling=pooling,
                ),
                text,
            )
            for (text, tokens), one, name in zip(prompts, params, names, strict=True)
        ]
        for index, (request, _) in enumerate(made):  # all of them, before the first one runs
            try:
                self.engine.check(request)
            except ConfigError as error:
                raise ConfigError(f"prompts[{index}]: {error}" if len(made) > 1 else str(error)) from None
        return made

    def _encode(self, prompt: Prompt) -> tuple[str | None, Sequence[int]]:
        if isinstance(prompt, str):
            if not prompt:
                raise ConfigError("the prompt is empty: give at least one character")
            return prompt, self.tokenizer.encode(prompt)
        if not isinstance(prompt, Sequence) or not all(isinstance(token, int) for token in prompt):
            raise ConfigError(f"a prompt must be text or a list of token ids, not {str(prompt)[:40]}")
        return None, cast("Sequence[int]", prompt)

    def _run(self, requests: list[tuple[Request, str | None]], progress: bool | None) -> list[Output]:
        """Runs all of them to the end; an exception, Ctrl-C included, cancels what is left."""
        waiting = deque(requests)
        room = self.engine.config.max_waiting - sum(reply.params.n for reply in self._replies.values())
        running: set[str] = set()
        try:
            with ProgressBar(len(requests), "prompts", on=progress) as bar:
                while waiting or running:
                    while waiting and (not running or waiting[0][0].params.n <= room):
                        request, text = waiting.popleft()
                        self._add(request, text)
                        running.add(request.id)
                        room -= request.params.n
                    finished = running & self._step()
                    running -= finished
                    room += sum(self._replies[name].params.n for name in finished)
                    bar.advance(len(finished))
            return [self._replies[request.id].output() for request, _ in requests]
        finally:
            for request, _ in requests:
                self._drop(request.id)

    def _stream(self, request: Request, text: str | None) -> Iterator[Chunk]:
        reply = self._add(request, text)
        chunks = self._chunks[request.id] = deque()
        try:
            while not reply.done:
                self._step()
                while chunks:
                    yield chunks.popleft()
            yield from chunks  # steps of another caller ended it
        finally:
            self._drop(request.id)

    def _add(self, request: Request, text: str | None) -> Reply:
        self.engine.add(request)
        at = time.perf_counter()
        reply = Reply(self.tokenizer, request.prompt, request.params, prompt=text, at=at)
        self._replies[request.id] = reply
        return reply

    def _drop(self, name: str) -> None:
        """Forgets a request, and cancels it if it is not done."""
        self._chunks.pop(name, None)
        reply = self._replies.pop(name, None)
        if reply is not None and not reply.done:
            self.engine.cancel(name)

    def _step(self) -> set[str]:
        """One engine step for everybody; ids of the requests that it finished."""
        assert self.engine.busy, "requests are unfinished, but the engine has nothing to do"
        finished = set()
        deltas = self.engine.step()
        at = time.perf_counter()
        for delta in deltas:
            reply = self._replies.get(delta.request)
            chunk = reply.take(delta, at) if reply is not None else None
            if reply is None or chunk is None:
                continue
            if chunk.finish_reason is not None and delta.finish_reason is None:
                self.engine.cancel(delta.request, delta.index)
            if delta.request in self._chunks:
                self._chunks[delta.request].append(chunk)
            if reply.done:
                finished.add(delta.request)
        return finished


def make_config(**settings: Any) -> EngineConfig:
    """EngineConfig from keywords, among them slots by name (kv_codec="plain"). Raises ConfigError for unknown ones."""
    slots = {name.replace("-", "_"): name for name in user_slots()}
    stack = dict(settings.pop("stack", None) or {})
    values = {}
    for name, value in settings.items():
        if name in slots and value is not None:
            stack[slots[name]] = value
        elif name not in slots:
            values[name] = value
    known = {field.name for field in dataclasses.fields(EngineConfig)} | set(slots)
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        raise ConfigError(f"no setting called {unknown!r}; {nearest(unknown, known)}")
    return EngineConfig.from_mapping({**values, "stack": stack}, where="LLM")
