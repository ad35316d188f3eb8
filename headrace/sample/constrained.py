"""A grammar as a processor's state: tokens that it does not allow get minus infinity.

The mask of the next token is computed in a thread from the moment that the last one is known, so it runs beside the
forward pass and is there when the logits are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import numpy
import torch
from torch import Tensor

from headrace.params import Grammar
from headrace.sample.grammars import Compiler, Matcher


class Constraints:
    """Makes states of grammars; shares the compiler and the thread."""

    def __init__(self, make: Callable[[], Compiler], eos: tuple[int, ...]) -> None:
        """make: the compiler, called when the first grammar comes: it reads the vocabulary."""
        self._make, self._eos = make, eos
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    @cached_property
    def _compiler(self) -> Compiler:
        return self._make()

    def start(self, grammar: Grammar, output: Sequence[int]) -> Constrained:
        """The state after `output`. Compiles in the thread: what is wrong with the grammar shows when it is applied."""
        return Constrained(
            self._thread.submit(self._matcher, grammar, tuple(output)), self._eos, self._thread
        )

    def _matcher(self, grammar: Grammar, output: tuple[int, ...]) -> Matcher:
        matcher = self._compiler.compile(grammar)
        for token in output:
            matcher.accept(token)
        return matcher


class Constrained:
    """One sequence's grammar."""

    def __init__(self, matcher: Future[Matcher], eos: tuple[int, ...], thread: ThreadPoolExecutor) -> None:
        self._matcher, self._eos, self._thread = matcher, eos, thread
        self._mask = self._compute()

    def _compute(self) -> Future[bytes]:
        """The thread does one thing after the other, so the matcher is there by then."""
        return self._thread.submit(lambda: self._matcher.result().mask())

    def _settled(self) -> Matcher:
        """The matcher, which the thread has left alone."""
        self._mask.exception()
        return self._matcher.result()

    def apply(self, logits_V: Tensor) -> Tensor:
        bits = numpy.frombuffer(self._mask.result(), dtype=numpy.uint8)
        allowed = numpy.unpackbits(bits, bitorder="little")[: len(logits_V)].astype(bool)
        forbidden_V = torch.ones(len(logits_V), dtype=torch.bool)
        forbidden_V[: len(allowed)] = torch.from_numpy(~allowed)
        forbidden_V[list(self._eos)] = bool(len(allowed)) and not allowed[self._eos[0]]
        return logits_V.masked_fill_(forbidden_V.to(logits_V.device), -torch.inf)

    def accept(self, token: int) -> None:
        self._settled().accept(token)
        self._mask = self._compute()

    def rollback(self, count: int) -> None:
        self._settled().rollback(count)
        self._mask = self._compute()

    def fork(self) -> Constrained:
        twin: Future[Matcher] = Future()
        twin.set_result(self._settled().fork())
        return Constrained(twin, self._eos, self._thread)
