"""A grammar as a processor's state: tokens that it does not allow get minus infinity.

Grammars are compiled in one thread, and until its own is, a sequence is not planned. Masks are computed in another,
each from the moment that the last token is known, so that it is there when the logits are. Where the text leaves no
choice, there is no mask to compute: the tokens are known, and the engine drafts them (headrace/schedule/drafts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property

import numpy
import torch
from torch import Tensor

from headrace.params import Grammar
from headrace.sample.grammars import Compiler, Matcher

_KEPT = 8
"""Grammars that stay compiled, most recently used: the further samples of a request, and a client's next request."""


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
        place = _Place(matcher, matcher.forced(), Future())
        if not place.forced:
            place.mask.set_result(_penalties(matcher))
        return place


@dataclass(frozen=True)
class _Place:
    """Where a sequence is in its grammar."""

    matcher: Matcher
    forced: tuple[int, ...]
    mask: Future[Tensor]
    """float32 [at least V], to add to logits: 0, or -inf for a token that may not come next. Never set if one must."""


class Constrained:
    """One sequence's grammar."""

    def __init__(self, place: Future[_Place], thread: ThreadPoolExecutor) -> None:
        self.compiled = place
        """Until this is done, every call waits."""
        self._place = place
        self._thread = thread

    @property
    def forced(self) -> tuple[int, ...]:
        """Tokens that come next whatever the logits are: the first for certain."""
        return () if self._place.exception() else self._place.result().forced

    def apply(self, logits_V: Tensor) -> Tensor:
        place = self._place.result()
        if place.forced:
            only = logits_V[place.forced[0]].clone()
            logits_V.fill_(-torch.inf)[place.forced[0]] = only
            return logits_V
        return logits_V.add_(place.mask.result()[: len(logits_V)].to(logits_V.device))

    def accept(self, token: int) -> None:
        matcher = self._settled()
        matcher.accept(token)
        self._look(matcher)

    def rollback(self, count: int) -> None:
        matcher = self._settled()
        matcher.rollback(count)
        self._look(matcher)

    def fork(self) -> Constrained:
        if self._place.exception():  # it will be told when it is sampled
            return Constrained(self._place, self._thread)
        twin = Constrained(Future(), self._thread)
        twin._look(self._settled().fork())
        return twin

    def _settled(self) -> Matcher:
        """The matcher, which the thread has left alone."""
        place = self._place.result()
        if not place.forced:
            place.mask.exception()
        return place.matcher

    def _look(self, matcher: Matcher) -> None:
        forced = matcher.forced()
        mask: Future[Tensor] = Future() if forced else self._thread.submit(_penalties, matcher)
        self._place = Future()
        self._place.set_result(_Place(matcher, forced, mask))


def _penalties(matcher: Matcher) -> Tensor:
    bits = numpy.frombuffer(matcher.mask(), dtype=numpy.uint8)
    return torch.from_numpy(_byte_penalties().take(bits, axis=0).ravel())


@cache
def _byte_penalties() -> numpy.ndarray:
    """[256, 8]: what the eight tokens of a mask's byte get. Looking it up is ten times faster than masked_fill_."""
    bits = numpy.arange(256)[:, None] >> numpy.arange(8) & 1
    return numpy.where(bits == 1, numpy.float32(0), numpy.float32(-numpy.inf))
