"""Rounds every weight to the nearest code of its group: nothing is calibrated.

Paper   nobody's: it is what loading a checkpoint with `--weights` does
Idea    The stored codes are those that loading would choose; the folder is as small as the model in memory.
Trades  Nothing against rounding while loading, byte for byte. What other recipes are compared with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headrace.architecture import Architecture
from headrace.slots import Card
from headrace.weight.codes import Coded, store_nearest
from headrace.weight.piece import Piece, Seen


@dataclass(frozen=True, kw_only=True)
class Rtn:
    """Round to nearest."""

    card: ClassVar[Card] = Card(slot="recipe", exact="lossy", paper="what loading with --weights does")
    calibrated: ClassVar[bool] = False
    folds: ClassVar[bool] = False

    def plan(self, architecture: Architecture) -> Architecture:
        return architecture

    def rewrite(self, piece: Piece) -> None:
        pass

    def choose(self, piece: Piece, seen: Seen, form: Coded) -> dict[str, Tensor]:
        return {name: store_nearest(form, piece.tensors[name]) for name in piece.matrices()}
