"""Scales up the inputs that see large activations, so that rounding hurts them less, then clips each group's range.

Paper   https://arxiv.org/abs/2306.00978 (AWQ)
Idea    One input in a hundred matters far more than the others, and its activations give it away. Multiplied by s
        before it is rounded, its relative error shrinks by s; the norm or product before it is divided by s, so nothing
        is computed that was not before. s = mean |x|^a, with a from a grid, per place, by the error of the products;
        then each group's largest weights are clipped as far as that lowers the error.
Trades  Calibration: two passes over the text, and some forty products with the second moments per matrix. No error
        feedback: it hardly fits itself to the calibration text.
Deviates  Both searches judge by the products' own error on all calibration rows, by their second moments, as the
        paper's formula does; its code judges the scale of query, key and value, and of gate and up, by the block's
        output. With grouped-query attention, heads that read the same value share its scale; its code leaves those out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.kernels.int_linear.layout import pad
from headrace.slots import Card
from headrace.weight.codes import Coded, nearest, store_nearest
from headrace.weight.folds import Fold, apply_scale, folds, safe
from headrace.weight.hessian import error
from headrace.weight.piece import Piece, Seen

_ROWS = 512
"""Outputs that are clipped at a time, which bounds the scratch."""
_UNCLIPPED = ("attention.q.weight", "attention.k.weight")
"""Their error is multiplied by each other's."""


@dataclass(frozen=True, kw_only=True)
class Awq:
    """Activation-aware scaling and clipping."""

    card: ClassVar[Card] = Card(slot="recipe", exact="lossy", paper="https://arxiv.org/abs/2306.00978")
    calibrated: ClassVar[bool] = True
    folds: ClassVar[bool] = True
    grid: int = 20
    """Exponents that are tried, from 0 to below 1; 0 scales nothing."""
    clip: int = 10
    """Ranges that are tried, each a twentieth smaller; 0 clips nothing."""

    def __post_init__(self) -> None:
        if not 0 <= self.grid <= 1000:
            raise ValueError(f"grid={self.grid} must be between 0 and 1000")
        if not 0 <= self.clip < 20:
            raise ValueError(f"clip={self.clip} must be between 0 and 19")

    def plan(self, architecture: Architecture) -> Architecture:
        return architecture

    def rewrite(self, piece: Piece) -> None:
        pass

    def choose(self, piece: Piece, seen: Seen, form: Coded) -> dict[str, Tensor]:
        for fold in folds(piece.block):
            if self.grid:
                apply_scale(piece, fold, self._scale(piece, fold, seen, form), seen)
        for name in piece.matrices():
            if self.clip and name not in _UNCLIPPED:
                weight, group = piece.tensors[name], form.group_of(piece.tensors[name].shape[1])
                parts = [
                    self._clipped(rows, seen.of(name).products_II, group, form)
                    for rows in weight.split(_ROWS)
                ]
                piece.tensors[name] = torch.cat(parts)
        return {name: store_nearest(form, piece.tensors[name]) for name in piece.matrices()}

    def _scale(self, piece: Piece, fold: Fold, seen: Seen, form: Coded) -> Tensor:
        """The scale per channel with the least error of the products behind it."""
        mean_C = fold.mean(fold.moments(seen).mean_I)
        names = [f"{reader}.weight" for reader in fold.readers if f"{reader}.weight" in piece.matrices()]
        best, least = torch.ones_like(mean_C), float("inf")
        for step in range(self.grid):
            scale_C = safe(mean_C.clamp(min=1e-4) ** (step / self.grid))
            scale_I = fold.spread(scale_C)
            loss = 0.0
            for name in names:
                weight = piece.tensors[name]
                difference = nearest(form, weight * scale_I) / scale_I - weight
                loss += error(difference, seen.of(name).products_II)
            if loss < least:
                best, least = scale_C, loss
        return best

    def _clipped(self, rows_OI: Tensor, products_II: Tensor, group: int, form: Coded) -> Tensor:
        """Every group of every output clipped to the range with the least error of its part of the product."""
        inputs = rows_OI.shape[1]
        blocks_GII = _diagonal_blocks(products_II, group)
        most_OG1 = pad(rows_OI, group).unflatten(1, (-1, group)).abs().amax(-1, keepdim=True)
        best_OI = rows_OI
        least_OG1 = torch.full_like(most_OG1, float("inf"))
        for step in range(self.clip + 1):
            limit_OI = (most_OG1 * (1 - step / 20)).expand(-1, -1, group).flatten(1)[:, :inputs]
            tried_OI = rows_OI.clamp(-limit_OI, limit_OI)
            off_OGI = pad(nearest(form, tried_OI) - rows_OI, group).unflatten(1, (-1, group))
            loss_OG1 = (torch.einsum("ogi,gij->ogj", off_OGI, blocks_GII) * off_OGI).sum(-1, keepdim=True)
            better = (loss_OG1 < least_OG1).expand(-1, -1, group).flatten(1)[:, :inputs]
            best_OI = torch.where(better, tried_OI, best_OI)
            least_OG1 = torch.minimum(loss_OG1, least_OG1)
        return best_OI


def _diagonal_blocks(products_II: Tensor, group: int) -> Tensor:
    """[G, group, group]: the moments within each group of inputs, zeros beyond the last input."""
    parts = [products_II[i : i + group, i : i + group] for i in range(0, len(products_II), group)]
    return torch.stack([torch.nn.functional.pad(p, (0, group - len(p), 0, group - len(p))) for p in parts])
