"""One sequence's grammar at work on its logits: tokens that it does not allow get minus infinity.

Grammars are compiled in one thread, and until its own is, a sequence is not planned. Masks are computed in another,
beside the forward pass whose logits need them, and not before: the rest of a step needs the interpreter itself. Where
the text leaves no choice, there is no mask to compute: the tokens are known, and the engine drafts them
(headrace/speculate/draft.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.kernels.mask import mask
from headrace.params import Grammar
from headrace.sample.grammars import Compiler, Grammars, Matcher
from headrace.sample.vocabulary import Vocabulary
from headrace.text.tokenizer import Tokenizer

_KEPT = 8
"""Grammars that stay compiled, most recently used: the further samples of a request, and a client's next request."""


def constraints_of(folder: Path | None, architecture: Architecture, grammars: Grammars) -> Constraints | None:
    """Those of a model's folder; None where there is no tokenizer, or no end token to end a text with."""
    vocab, eos = architecture.vocab, architecture.eos
    if folder is None or not eos:
        return None
    return Constraints(lambda: grammars.start(Vocabulary(Tokenizer(folder), vocab, eos)))


class Constraints:
    """Makes states of grammars; holds the compiler and the threads."""

    def __init__(self, make: Callable[[], Compiler]) -> None:
        """make: the compiler, called when the first grammar comes: it reads the vocabulary."""
        self._make = make
        self._compiled: dict[Grammar, Matcher] = {}  # the compiling thread's alone
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="grammar-compile")
        self._masking = ThreadPoolExecutor(1, thread_name_prefix="grammar-mask")

    @cached_property
    def _compiler(self) -> Compiler:
        return self._make()

    def start(self, grammar: Grammar, output: Sequence[int]) -> Constrained:
        """The state after `output`. What is wrong with the grammar shows when it is applied."""
        return Constrained(self._compiling.submit(self._begin, grammar, tuple(output)), self._masking)

    def _begin(self, grammar: Grammar, output: tuple[int, ...]) -> _Place:
        fresh = self._compiled.pop(grammar, None) or self._compiler.compile(grammar)
        self._compiled[grammar] = fresh
        if len(self._compiled) > _KEPT:
            del self._compiled[next(iter(self._compiled))]
        matcher = fresh.fork()
        for token in output:
            matcher.accept(token)
        place = _Place(matcher, matcher.forced())
        if not place.forced:
            place.bits = Future()
            place.bits.set_result(_bits(matcher))
        return place


@dataclass
class _Place:
    """Where a sequence is in its grammar."""

    matcher: Matcher
    forced: tuple[int, ...]
    bits: Future[Tensor] | None = None
    """uint8 [at least V / 8]: a bit for each token that may come next. None until somebody looks ahead."""


class Constrained:
    """One sequence's grammar."""

    def __init__(self, compiled: Future[_Place], thread: ThreadPoolExecutor) -> None:
        self.compiled = compiled
        """Until this is done, every call waits."""
        self._moved: _Place | None = None  # from where it was compiled for
        self._thread = thread

    @property
    def _place(self) -> _Place:
        """Raises ConfigError if the grammar could not be compiled."""
        return self._moved or self.compiled.result()

    @property
    def _broken(self) -> bool:
        """It will be told when the sequence is sampled."""
        return self._moved is None and self.compiled.exception() is not None

    @property
    def forced(self) -> tuple[int, ...]:
        """Tokens that come next whatever the logits are: the first for certain."""
        return () if self._broken else self._place.forced

    def masked(self, logits_V: Tensor) -> Tensor:
        """[V] -> [V] float32 or wider, a copy."""
        place = self._place
        if not place.forced:
            return mask(logits_V, place.bits.result() if place.bits else _bits(place.matcher))
        only = place.forced[0]
        wide = torch.promote_types(logits_V.dtype, torch.float32)
        masked_V = torch.full_like(logits_V, -torch.inf, dtype=wide)
        masked_V[only] = logits_V[only]
        return masked_V

    def look_ahead(self) -> None:
        """Has the next mask computed in the thread, where one will be needed."""
        if self._broken:
            return
        place = self._place
        if not place.forced and place.bits is None:
            place.bits = self._thread.submit(_bits, place.matcher)

    def accept(self, token: int) -> None:
        matcher = self._settled()
        matcher.accept(token)
        self._move(matcher)

    def rollback(self, count: int) -> None:
        matcher = self._settled()
        matcher.rollback(count)
        self._move(matcher)

    def fork(self) -> Constrained:
        twin = Constrained(self.compiled, self._thread)
        if not self._broken:
            twin._move(self._settled().fork())
        return twin

    def _settled(self) -> Matcher:
        """The matcher, which the thread has left alone."""
        place = self._place
        if place.bits is not None:
            place.bits.exception()
        return place.matcher

    def _move(self, matcher: Matcher) -> None:
        self._moved = _Place(matcher, matcher.forced())


def _bits(matcher: Matcher) -> Tensor:
    return torch.frombuffer(bytearray(matcher.mask()), dtype=torch.uint8)
