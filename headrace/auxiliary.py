"""A second model beside an engine's own, for those who need another opinion: drafters and switchers."""

from __future__ import annotations

import dataclasses
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
        params = dataclasses.replace(params, max_tokens=count, ignore_eos=True)
        engine.add(Request(id="draft", prompt=tuple(tokens), params=params))
        found: list[int] = []
        while engine.busy:
            found += (token for delta in engine.step() for token in delta.tokens)
        return found


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
