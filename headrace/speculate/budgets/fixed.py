"""Checks as many guesses as there are, up to a number per sequence.

Paper   https://arxiv.org/abs/2211.17192 (speculative decoding, with its gamma)
Idea    The length of a draft is a constant that somebody has tuned.
Trades  Nothing is measured while it runs; text that is hard to guess pays for rows that are thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from headrace.slots import Card
from headrace.speculate.budgets import Checked


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """The same number always."""

    card: ClassVar[Card] = Card(slot="draft-budget", exact="bits", paper="https://arxiv.org/abs/2211.17192")
    tokens: int = 8
    """Per sequence and step."""

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= 64:
            raise ValueError(f"tokens={self.tokens} must be between 1 and 64")

    def start(self) -> _Live:
        return _Live(self.tokens)


class _Live:
    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def room(self, seq: int, rows: int, sequences: int) -> int:
        """See the contract."""
        return self._tokens

    def observe(self, rows: int, seconds: float, checked: Sequence[Checked]) -> None:
        """Nothing to learn."""

    def forget(self, seq: int) -> None:
        """Nothing to forget."""
