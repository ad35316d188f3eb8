"""What drafters and switchers ask of a second model. It lies above them, in headrace/auxiliary.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from headrace.params import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

    from headrace.forward.lane import Lane


class Drawn(NamedTuple):
    """Tokens that a second model drew, one after the other."""

    tokens: tuple[int, ...]
    laws: tuple[Tensor, ...]
    """float64 [V] each: the probabilities that the token was drawn with."""


class Auxiliary(Protocol):
    """A second model, with keys and values of its own."""

    def greedy(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        """What it would continue these tokens with, at most `count` of them: fewer where its context ends."""

    def drawn(self, tokens: Sequence[int], count: int, params: SamplingParams, seed: int) -> Drawn:
        """A continuation drawn as `params` want it, as far as they look at one row alone (temperature, top-k, top-p,
        min-p), at most `count` tokens: fewer where its context ends. seed: of the draws, which depend on the position.
        """

    def laws(self, texts: Sequence[Sequence[int]], params: SamplingParams) -> list[Tensor]:
        """What comes next in each text, drawn as `params` want it (see `drawn`; with temperature 0 as with 1), float64
        probabilities [V]. Texts of one length; [] where the context ends."""

    @property
    def lane(self) -> Lane:
        """Where it works, for those who plan its passes themselves."""


Open = Callable[[str], Auxiliary]
"""A model in the box, or a folder -> the model, loaded beside the engine's own. Raises ConfigError if it does not share
the vocabulary, or there is no memory for it."""
