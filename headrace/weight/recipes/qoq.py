"""Rotates and smooths what products read until no channel stands out, folded into weights, and rounds as GPTQ does.

Paper   https://arxiv.org/abs/2405.04532 (QServe, QoQ), https://arxiv.org/abs/2404.00456 (QuaRot, where rotations fold)
Idea    A Hadamard matrix spreads a channel with large activations over all of them: the residual stream and each head's
        values are turned, and the weights on both sides with them. Inputs of out and down, where no rotation reaches
        both sides, are divided by max |x|^a / max |w|^b, and the products before them multiplied (smoothing). Keys are
        divided by the square root of their largest numbers, and queries multiplied (SmoothAttention), for codecs that
        store keys in few bits. What is left is rounded as in GPTQ.
Trades  GPTQ's calibration. With a tied head the model grows by it, as the head takes the final norm's weights and the
        embedding does not.
Deviates  Inputs are not reordered by their activations: after a rotation they are much alike. The paper's smoothing of
        inputs behind a norm is the rotation here. Meant for `int4_dual`; it serves every format of codes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.errors import ConfigError
from headrace.slots import Card
from headrace.weight.codes import Coded
from headrace.weight.folds import (
    Fold,
    apply_key_scale,
    apply_scale,
    folds,
    hadamard,
    rotate_residual,
    rotate_values,
    safe,
)
from headrace.weight.hessian import compensate
from headrace.weight.piece import Piece, Seen


@dataclass(frozen=True, kw_only=True)
class Qoq:
    """Rotation, smoothing, and rounding with error compensation."""

    card: ClassVar[Card] = Card(slot="recipe", exact="lossy", paper="https://arxiv.org/abs/2405.04532")
    calibrated: ClassVar[bool] = True
    folds: ClassVar[bool] = True
    rotate: bool = True
    """Turn the residual stream and the values."""
    alpha: float = 0.3
    """Of smoothing: the exponent of activations; with beta=0, 0 smooths nothing."""
    beta: float = 0.7
    """Of smoothing: the exponent of weights."""
    keys: float = 0.5
    """Of SmoothAttention: the exponent of keys; 0 leaves them as they are."""
    damp: float = 0.01
    """See gptq."""
    seed: int = 0
    """Of the rotation's signs."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "keys"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1")
        if not 0 < self.damp <= 1:
            raise ValueError(f"damp={self.damp} must be above 0 and at most 1")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed={self.seed} must be 0 or more, and below 2^63")

    def plan(self, architecture: Architecture) -> Architecture:
        if self.rotate and any(block.post_norms for block in architecture.blocks):
            raise ConfigError(
                f"recipe=qoq: {architecture.family} norms what its branches add to the residual stream, and those "
                "norms' weights do not commute with a rotation: use qoq:rotate=false, or awq or gptq"
            )
        return dataclasses.replace(architecture, tied_head=False) if self.rotate else architecture

    def rewrite(self, piece: Piece) -> None:
        if not self.rotate:
            return
        rotate_residual(piece, hadamard(piece.architecture.width, self.seed))
        if piece.layer is not None:
            rotate_values(piece, hadamard(piece.block.attention.head_size, self.seed))

    def choose(self, piece: Piece, seen: Seen, form: Coded) -> dict[str, Tensor]:
        for fold in folds(piece.block):
            if piece.tensors[f"{fold.source}.weight"].ndim == 2 and (self.alpha or self.beta):
                apply_scale(piece, fold, self._smoothing(piece, fold, seen), seen)
        if self.keys:
            apply_key_scale(piece, self._key_scale(piece, seen))
        return {
            name: compensate(piece.tensors[name], seen.of(name).products_II, form, damp=self.damp)
            for name in piece.matrices()
        }

    def _smoothing(self, piece: Piece, fold: Fold, seen: Seen) -> Tensor:
        """Per channel: max |x|^alpha / max |w|^beta."""
        (reader,) = fold.readers
        most_C = fold.most(fold.moments(seen).most_I).clamp(min=1e-4)
        weight_C = fold.most(piece.tensors[f"{reader}.weight"].abs().amax(0)).clamp(min=1e-4)
        return safe(most_C**self.alpha / weight_C**self.beta)

    def _key_scale(self, piece: Piece, seen: Seen) -> Tensor:
        """[G, H], the same for both numbers of a rotated pair, and for all heads where they are normed."""
        assert seen.keys_GH is not None, "a block without keys"
        most_GH = seen.keys_GH.clamp(min=1e-4)
        if piece.block.attention.qk_norm:
            most_GH = most_GH.amax(0, keepdim=True).expand_as(most_GH)
        first, second = most_GH.chunk(2, 1)
        return torch.maximum(first, second).repeat(1, 2) ** self.keys
