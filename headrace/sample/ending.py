"""What a grammar's matcher does once its text has ended, whoever parses it: an end token is no part of the text.

So neither it nor what follows it reaches the parser, and only end tokens may follow.
"""

from __future__ import annotations

from typing import TypeVar

from headrace.sample.vocabulary import Vocabulary

Self = TypeVar("Self", bound="Ending")


class Ending:
    """A Matcher, of which the five methods at the end are still to be written: for a text that goes on."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._ended = 0  # tokens since the text ended

    def mask(self) -> bytes:
        return self._vocabulary.mask(*self._vocabulary.eos) if self._ended else self._mask()

    def forced(self) -> tuple[int, ...]:
        return () if self._ended else self._forced()

    def accept(self, token: int) -> None:
        if self._ended or token in self._vocabulary.eos:
            self._ended += 1
        else:
            self._take(token)

    def rollback(self, count: int) -> None:
        beyond = min(count, self._ended)
        self._ended -= beyond
        if count > beyond:
            self._undo(count - beyond)

    def fork(self: Self) -> Self:
        twin = self._twin()
        twin._ended = self._ended
        return twin

    def _mask(self) -> bytes:
        raise NotImplementedError

    def _forced(self) -> tuple[int, ...]:
        raise NotImplementedError

    def _take(self, token: int) -> None:
        raise NotImplementedError

    def _undo(self, count: int) -> None:
        raise NotImplementedError

    def _twin(self: Self) -> Self:
        raise NotImplementedError
