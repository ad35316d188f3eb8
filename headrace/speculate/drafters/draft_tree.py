"""Guesses a tree with a smaller model of the same vocabulary: several tokens for a place, one of which may be right.

Paper   https://arxiv.org/abs/2402.14160 (RSD-C: constant branching per level); https://arxiv.org/abs/2305.09781
        (SpecInfer)
Idea    A place has `branching` guesses, level by level: "2.2.1" are two, two after each of them, and one after each of
        these four. Where the verifier weighs laws (`rsd`) they are drawn without putting back, with the request's
        temperature, top-k, top-p and min-p; else they are the likeliest.
Trades  A pass of the small model per level, for all guesses of the level at once; a row of the large one per guess.
Differs The paper's RSD-S (a beam that is drawn over all paths) is not here. What a sequence has in
        common with itself a step ago is in the small model's prefix cache, in whole pages: up to a page is computed
        again for each path.
"""

from __future__ import annotations

import itertools
import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.sample import draw
from headrace.slots import Card
from headrace.speculate.second import Auxiliary, Open
from headrace.speculate.tree import Draft
from headrace.types import Sequence

MOST = 64
"""Guesses of a tree."""
_COUNTS = {str(count) for count in range(1, 17)}


@dataclass(frozen=True, kw_only=True)
class DraftTree:
    """A second model, and how its guesses branch."""

    card: ClassVar[Card] = Card(
        slot="drafter",
        exact="bits",
        paper="https://arxiv.org/abs/2402.14160",
        gives=("draft_law", "drawn_tree"),
    )
    model: str
    """A model in the box, or a folder."""
    branching: str = "2.2.1.1"
    """Guesses after each guess, from the first level on, with dots between."""

    def __post_init__(self) -> None:
        parts = self.branching.split(".")
        if len(parts) > 16 or any(part not in _COUNTS for part in parts):
            raise ValueError(
                f"branching={self.branching!r} must be 1 to 16 numbers of 1 to 16 with dots between"
            )
        count = sum(itertools.accumulate(map(int, parts), operator.mul))
        if count > MOST:
            raise ValueError(f"branching={self.branching!r} are {count} guesses, more than {MOST}")

    def start(self, open_model: Open, laws: bool) -> _Live:
        return _Live(open_model(self.model), tuple(map(int, self.branching.split("."))), laws)


class _Live:
    def __init__(self, model: Auxiliary, branching: tuple[int, ...], laws: bool) -> None:
        self._model, self._branching, self._laws = model, branching, laws

    def propose(self, seq: Sequence, room: int, depth: int) -> Draft:
        """See the contract."""
        drawn = self._laws and seq.request.params.temperature > 0
        tokens, parents, laws = list[int](), list[int](), list[Tensor]()
        paths: dict[int, tuple[int, ...]] = {-1: ()}
        level = [-1]
        for place, most in enumerate(self._branching[:depth]):
            asked = level[: -(-(room - len(tokens)) // most)]
            texts = [(*seq.tokens, *paths[guess]) for guess in asked]
            level = []
            for parent, law_V in zip(asked, self._model.laws(texts, seq.request.params), strict=False):
                count = min(most, room - len(tokens))
                for token in self._guesses(law_V, count, seq, place) if drawn else _likeliest(law_V, count):
                    paths[len(tokens)] = (*paths[parent], token)
                    level.append(len(tokens))
                    tokens.append(token)
                    parents.append(parent)
                    laws.append(law_V)
            if not level:
                break
        return Draft(tuple(tokens), tuple(parents), tuple(laws) if drawn else ())

    def _guesses(self, law_V: Tensor, count: int, seq: Sequence, place: int) -> list[int]:
        """Drawn one after the other, without putting back, as far as anything is left."""
        found, seed = list[int](), draw.draft_seed(seq.seed)
        while len(found) < count and float(law_V.sum()) > 0:
            u = draw.uniform(seed, len(seq) + place, f"guess{len(found)}")
            found.append(draw.choose(law_V.log(), u))
            law_V = draw.without(law_V, found[-1])
        return found

    def learn(self, seq: Sequence, tokens: tuple[int, ...], logits_RV: Tensor) -> None:
        """Nothing to learn."""

    def forget(self, seq: int) -> None:
        """Its pages grow old in the small model's prefix cache."""


def _likeliest(law_V: Tensor, count: int) -> list[int]:
    best: list[int] = torch.topk(law_V, min(count, len(law_V))).indices.tolist()
    return best
