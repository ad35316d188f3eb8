"""A second model beside an engine's own, for those who need another opinion: drafters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from headrace import box
from headrace.engine import Engine
from headrace.params import SamplingParams
from headrace.text.tokenizer import Tokenizer, check_same_vocabulary
from headrace.types import Request

SHARED = ("weights", "kv-codec")
"""Slots of the stack that the second model takes over."""


class SecondModel:
    """An engine that answers at once, and nobody else asks."""

    def __init__(self, engine: Engine, vocab: int) -> None:
        """vocab: of those who ask; a token that they do not know ends an answer."""
        self._engine, self._vocab = engine, vocab

    def greedy(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        """What it would continue these tokens with, at most `count`: fewer where its context ends."""
        engine = self._engine
        count = min(count, engine.context - len(tokens))
        if count < 1:
            return ()
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        engine.add(Request(id="draft", prompt=tuple(tokens), params=params))
        found: list[int] = []
        while engine.busy:
            found += (token for delta in engine.step() for token in delta.tokens)
        strange = next((i for i, token in enumerate(found) if token >= self._vocab), len(found))
        return tuple(found[:strange])


def open_beside(first: Engine, model: str) -> SecondModel:
    """Loads `model` with the first one's device, threads, weights and KV codec. Raises ConfigError if they do not share
    a vocabulary."""
    stack = {slot: spec for slot, spec in first.config.stack.items() if slot in SHARED}
    config = dataclasses.replace(
        first.config, model=model, stack=stack, context=None, kv_bytes=None, preempt="recompute", adapters={}
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
