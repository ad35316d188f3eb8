"""Slot `shrinker`: which tokens of a prompt are read. One is a frozen dataclass with what Shrinker lists."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from headrace.slots import Card, Slot

if TYPE_CHECKING:
    from torch import Tensor


class Look(NamedTuple):
    """What a shrinker wants to see: these tokens, run through the layers below one."""

    tokens: tuple[int, ...]
    layer: int
    """At least 1, and one of the model's."""


class Seen(NamedTuple):
    """What that layer's attention makes of them, rotated: the last one's queries, and everyone's keys."""

    query_NH: Tensor
    keys_LGH: Tensor


Shrinking = Generator[Look, Seen, Sequence[int]]
"""Yields what it wants to see, is sent it, and returns the places of the tokens that stay, rising."""


class Shrinker(Protocol):
    """Makes prompts shorter. What it leaves out is not run through the rest of the model; places are counted anew."""

    card: ClassVar[Card]

    def shrink(self, tokens: Sequence[int], layers: int) -> Shrinking:
        """Chooses from the tokens of one prompt, for a model of so many layers. Depends on nothing else, so that a
        prompt is shortened to the same tokens whatever runs beside it. At least one token stays.

        Raises ConfigError, before it looks, for a model that it does not fit.
        """
        ...


SLOT = Slot(
    name="shrinker",
    asks="which tokens of a prompt are read",
    index={"gemfilter": "headrace.text.shrinkers.gemfilter:GemFilter"},
    default="",
)
