"""Slot `grammar`: which tokens may come next where the output must have a form, such as that of a JSON schema.

Add one: a file here with a frozen dataclass that has `card` and `start`, and a line in the index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from headrace.params import Grammar
from headrace.slots import Card, Slot

if TYPE_CHECKING:
    from headrace.text.tokenizer import Tokenizer


class Matcher(Protocol):
    """A grammar at work on one sequence."""

    def mask(self) -> bytes:
        """One bit per token, lowest first, set where it may come next; end tokens where the text may end.

        Takes tens of microseconds, without Python's lock. Raises ConfigError if the grammar is too hard here.
        """

    def accept(self, token: int) -> None:
        """The text now ends with this token, which the mask allowed."""

    def rollback(self, count: int) -> None:
        """Takes back the last `count` tokens."""

    def fork(self) -> Matcher:
        """An equal one that goes its own way from here."""

    def forced(self) -> tuple[int, ...]:
        """Tokens that must come next, as far as that is certain."""


class Compiler(Protocol):
    """Turns grammars into matchers for one vocabulary."""

    def compile(self, grammar: Grammar) -> Matcher:
        """At the start of an output. Bounded in time and memory. Raises ConfigError for what is no grammar."""


class Grammars(Protocol):
    """How grammars are compiled."""

    card: ClassVar[Card]

    def start(self, tokenizer: Tokenizer, size: int, eos: tuple[int, ...]) -> Compiler:
        """For a model with `size` logits and these end tokens."""


SLOT = Slot(
    name="grammar",
    asks="how output is kept to a form",
    index={"llguidance": "headrace.sample.grammars.llguidance:LlGuidance"},
    default="llguidance",
)
