"""Rounds inputs one after the other, and moves each one's error into those that are left.

Paper   https://arxiv.org/abs/2210.17323 (GPTQ)
Idea    What the rounding of an input does to a product is known from the second moments of the calibration rows, and
        the weights behind it make up for it as well as they can. Other codes; the same bytes, the same kernels.
Trades  Calibration: two passes over the text, and per block as many multiply-adds as its matrices have numbers, times
        their inputs. Memory for the second moments of one block: inputs squared, four bytes each.
Deviates  A block's products are all calibrated on the block as it was, behind blocks that are rounded already; the
        optional inner order of the paper's code, product after product, is left out. A group's scale is fitted to its
        weights with all that was moved there, which that code does only where groups are whole slabs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headrace.architecture import Architecture
from headrace.slots import Card
from headrace.weight.codes import Coded
from headrace.weight.hessian import compensate
from headrace.weight.piece import Piece, Seen


@dataclass(frozen=True, kw_only=True)
class Gptq:
    """Rounding with error compensation."""

    card: ClassVar[Card] = Card(slot="recipe", exact="lossy", paper="https://arxiv.org/abs/2210.17323")
    calibrated: ClassVar[bool] = True
    folds: ClassVar[bool] = False
    damp: float = 0.01
    """Share of the moments' mean diagonal that is added to it, above 0, up to 1."""
    sort: bool = False
    """Round the most active inputs first, with scales fitted beforehand."""

    def __post_init__(self) -> None:
        if not 0 < self.damp <= 1:
            raise ValueError(f"damp={self.damp} must be above 0 and at most 1")

    def plan(self, architecture: Architecture) -> Architecture:
        return architecture

    def rewrite(self, piece: Piece) -> None:
        pass

    def choose(self, piece: Piece, seen: Seen, form: Coded) -> dict[str, Tensor]:
        return {
            name: compensate(
                piece.tensors[name], seen.of(name).products_II, form, damp=self.damp, sort=self.sort
            )
            for name in piece.matrices()
        }
