"""Slot `processors`: what happens to the logits of a row before a token is drawn. Several, in order.

Add one: a file here with a frozen dataclass that has `card` and `init`, and a line in the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from headrace.params import SamplingParams
from headrace.slots import Card, Slot

if TYPE_CHECKING:
    from torch import Tensor


class State(Protocol):
    """One processor at work on one sequence."""

    def apply(self, logits_V: Tensor) -> Tensor:
        """The changed logits: float32 or float64 [V], -inf forbids a token. May overwrite its argument."""

    def accept(self, token: int, logits_V: Tensor) -> None:
        """The sequence now ends with this token. logits_V: the row that it was chosen from, before any processor; not
        to be kept, nor changed."""

    def fork(self) -> State:
        """An equal state that goes its own way from here."""

    def rollback(self, count: int) -> None:
        """Takes back the last `count` accepted tokens."""


class Processor(Protocol):
    """Changes logits; options of the technique hold for every request, `params` for one."""

    card: ClassVar[Card]

    def init(
        self, params: SamplingParams, tokens: Sequence[int], prompt_len: int, eos: Sequence[int]
    ) -> State | None:
        """The state for a sequence that so far has `tokens`; None if the request asks nothing of this processor.

        eos: the end tokens of the model, empty if the request ignores them.
        """


SLOT = Slot(
    name="processors",
    asks="what happens to logits before a token is drawn",
    index={
        "penalties": "headrace.sample.processors.penalties:Penalties",
        "logit_bias": "headrace.sample.processors.logit_bias:LogitBias",
        "allowed_tokens": "headrace.sample.processors.allowed_tokens:AllowedTokens",
        "bad_words": "headrace.sample.processors.bad_words:BadWords",
        "min_tokens": "headrace.sample.processors.min_tokens:MinTokens",
        "temperature": "headrace.sample.processors.temperature:Temperature",
        "top_k": "headrace.sample.processors.top_k:TopK",
        "top_p": "headrace.sample.processors.top_p:TopP",
        "min_p": "headrace.sample.processors.min_p:MinP",
        "mirostat": "headrace.sample.processors.mirostat:Mirostat",
    },
    default="penalties+logit_bias+allowed_tokens+bad_words+min_tokens+temperature+top_k+top_p+min_p",
    many=True,
)
