"""Slot `grammar`: which tokens may come next where the output must have a form, such as that of a JSON schema.

Add one: a file here with a frozen dataclass that has `card` and `start`, and a line in the index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from headrace.params import Grammar
from headrace.slots import Card, Slot

if TYPE_CHECKING:
    from headrace.sample.vocabulary import Vocabulary


class Matcher(Protocol):
    """A grammar at work on one sequence. Used by one thread at a time; not always by the same."""

    def mask(self) -> bytes:
        """One bit per token, lowest first, set where the text with this token can still be completed; every end token
        where it is complete, and nothing else once it has ended. But where forced() names tokens, only its first.
        Tens of microseconds, without Python's lock. Raises ConfigError if the grammar is too hard here."""

    def forced(self) -> tuple[int, ...]:
        """What comes next if the text leaves no choice: its usual tokens, for there are others for the same text.
        The first is certain, the others are as good as that. Empty where there is a choice, and at the end."""

    def accept(self, token: int) -> None:
        """The text now ends with this token, which the mask allowed."""

    def rollback(self, count: int) -> None:
        """Takes back the last `count` tokens: everything is as if they had never been accepted."""

    def fork(self) -> Matcher:
        """An equal one that goes its own way from here."""


class Compiler(Protocol):
    """Turns grammars into matchers for one vocabulary."""

    def compile(self, grammar: Grammar) -> Matcher:
        """At the start of an output. Raises ConfigError for what is no grammar or would not be enforced."""


class Grammars(Protocol):
    """How grammars are compiled. To make one raises ConfigError if its library is missing."""

    card: ClassVar[Card]

    def start(self, vocabulary: Vocabulary) -> Compiler: ...


SLOT = Slot(
    name="grammar",
    asks="how output is kept to a form",
    index={
        "llguidance": "headrace.sample.grammars.llguidance:LlGuidance",
        "xgrammar": "headrace.sample.grammars.xgrammar:XGrammar",
    },
    default="llguidance",
)
