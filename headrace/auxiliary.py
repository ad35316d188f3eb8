"""A second model beside an engine's own, for those who need another opinion: drafters and switchers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from headrace import box
from headrace.engine import Engine
from headrace.forward.lane import Lane
from headrace.params import SamplingParams
from headrace.speculate.second import Drawn
from headrace.text.tokenizer import Tokenizer, check_same_vocabulary
from headrace.types import Request

SHARED = ("weights", "kv-codec", "policy")
"""Slots of the stack that the second model takes over."""


class SecondModel:
    """An engine that answers at once, and nobody else asks."""

    def __init__(self, engine: Engine, vocab: int) -> None:
        """vocab: of those who ask; a token that they do not know ends an answer."""
        self._engine, self._vocab = engine, vocab
        self._names = itertools.count()
        self._kept: dict[str, list[int]] = {}
        """Requests that rest in the engine -> the text that they were to continue; the last one last."""

    @property
    def lane(self) -> Lane:
        """See Auxiliary."""
        return self._engine.lanes[0]

    def greedy(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        """What it would continue these tokens with, at most `count`: fewer where its context ends."""
        found = self._continue(tokens, count, SamplingParams(temperature=0))
        strange = next((i for i, token in enumerate(found) if token >= self._vocab), len(found))
        return tuple(found[:strange])

    def drawn(self, tokens: Sequence[int], count: int, params: SamplingParams, seed: int) -> Drawn:
        """See Auxiliary."""
        own, laws = dataclasses.replace(_of_one_row(params), seed=seed), list[Tensor]()
        self._engine.sampler.tap = lambda seq, logits_V: laws.append(self._law(logits_V))
        try:
            found = self._continue(tokens, count, own)
        finally:
            self._engine.sampler.tap = None
        strange = next((i for i, token in enumerate(found) if token >= self._vocab), len(found))
        return Drawn(tuple(found[:strange]), tuple(laws[:strange]))

    def laws(self, texts: Sequence[Sequence[int]], params: SamplingParams) -> list[Tensor]:
        """See Auxiliary."""
        engine, found = self._engine, dict[str, Tensor]()
        if not texts or len(texts[0]) >= engine.context:
            return []
        own = dataclasses.replace(_of_one_row(params), max_tokens=1, ignore_eos=True, seed=0)
        engine.sampler.tap = lambda seq, logits_V: found.update({seq.request.id: self._law(logits_V)})
        try:
            for number, text in enumerate(texts):
                engine.add(Request(id=str(number), prompt=tuple(text), params=own))
            while engine.busy:
                engine.step()
        finally:
            engine.sampler.tap = None
        complete = len(found) == len(texts)  # else its logits were no numbers
        return [found[str(number)] for number in range(len(texts))] if complete else []

    def _law(self, logits_V: Tensor) -> Tensor:
        """[V] as those who ask count it. A token that they do not know ends a draft, so that those they do know come
        with the probability that they have among each other."""
        law_V = logits_V.new_full((self._vocab,), -torch.inf, dtype=torch.float64)
        known = min(self._vocab, len(logits_V))
        law_V[:known] = logits_V[:known]
        return law_V.softmax(-1)

    def _continue(self, tokens: Sequence[int], count: int, params: SamplingParams) -> list[int]:
        engine = self._engine
        count = min(count, engine.context - len(tokens))
        if count < 1:
            return []
        params = dataclasses.replace(params, max_tokens=None, ignore_eos=True)
        name = self._begin(Request(id=f"draft{next(self._names)}", prompt=tuple(tokens), params=params))
        found: list[int] = []
        ended = False
        while len(found) < count and not ended:
            for delta in engine.step():
                found += delta.tokens
                ended = ended or delta.finish_reason is not None
        if not ended:
            self._kept[name] = list(tokens)
            engine.resting.add(name)
        return found

    def _begin(self, request: Request) -> str:
        """Runs it: from the text that was continued last of those that it continues itself, if one is kept. So what is
        computed again are the tokens that the last guess got wrong."""
        engine, asked = self._engine, list(request.prompt)
        for name in reversed(self._kept):
            known = self._kept[name]
            if asked[: len(known)] == known:
                del self._kept[name]
                engine.resting.discard(name)
                self._become(name, request)
                return name
        if len(self._kept) >= engine.config.max_seqs:
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            engine.resting.discard(oldest)
            engine.cancel(oldest)
        engine.add(request)
        return request.id

    def _become(self, name: str, request: Request) -> None:
        """A living request goes on as another one; what is computed of the tokens that both begin with stays."""
        engine = self._engine
        engine.check(request)
        seq = next(seq for seq in engine.queues if seq.request.id == name)
        pairs = enumerate(zip(seq.tokens, request.prompt, strict=False))
        alike = next((i for i, (old, new) in pairs if old != new), len(request.prompt))
        engine.lanes[0].rewind(seq.id, min(alike, len(request.prompt) - 1))
        seq.request, seq.seed = dataclasses.replace(request, id=name), request.params.seed or 0
        seq.tokens[:], seq.prompt_len = request.prompt, len(request.prompt)
        engine.sampler.start(seq)


def _of_one_row(params: SamplingParams) -> SamplingParams:
    """What of them asks for a law that a row's logits alone decide."""
    temperature = params.temperature or 1.0
    return SamplingParams(temperature=temperature, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p)


def open_beside(first: Engine, model: str) -> SecondModel:
    """Loads `model` with the first one's device, threads, weights, KV codec and policy. Raises ConfigError if they do
    not share a vocabulary."""
    stack = {slot: spec for slot, spec in first.config.stack.items() if slot in SHARED}
    config = dataclasses.replace(
        first.config,
        model=model,
        stack=stack,
        context=None,
        kv_bytes=None,
        preempt="recompute",
        adapters={},
        max_waiting=4096,
    )
    second = Engine(config)
    if first.path is not None and second.path is not None:
        check_same_vocabulary(
            "a second model needs the same vocabulary",
            Tokenizer(first.path),
            Tokenizer(second.path),
            box.probe_text(),
        )
    return SecondModel(second, first.architecture.vocab)
