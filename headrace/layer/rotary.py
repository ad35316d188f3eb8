"""Rotary positions: tables of angles, and the rotation itself. What the slot `positions` shares.

Paper: https://arxiv.org/abs/2104.09864. Pairs are (i, i + H/2), the Hugging Face convention.
Shape suffixes beside those of headrace/types.py: F frequencies (half the head size), L positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from headrace.kernels import rope as kernel

ONE_SCHEME = (
    "per_layer_positions",
    "this model's layers differ in scheme or base, and one technique would replace them all",
)
"""What a position scheme breaks when a user puts it in the place of the checkpoint's own."""
_ROWS = 8192  # positions per slice while tables are made: bounds the float64 scratch


class Rotary:
    """Cosines and sines of every position up to the context; the live object of the slot `positions`."""

    __slots__ = ("cos_LF", "scale", "sin_LF")

    def __init__(self, cos_LF: Tensor, sin_LF: Tensor, scale: float) -> None:
        self.cos_LF = cos_LF
        self.sin_LF = sin_LF
        self.scale = scale
        """Already in the tables: a rotated vector is this much longer (YaRN's attention factor)."""

    def at(self, positions_T: Tensor) -> Callable[[Tensor], Tensor]:
        """The rotation for rows at these positions, int64 [T], each below the context."""
        return partial(kernel.rotate, cos_LF=self.cos_LF, sin_LF=self.sin_LF, positions_T=positions_T)

    def rotate(self, x_TNH: Tensor, positions_T: Tensor) -> Tensor:
        """Rotates row t of [T, N, H] to its position; x stays as it is."""
        return self.at(positions_T)(x_TNH.clone())

    def undo(self, x_TNH: Tensor, positions_T: Tensor) -> Tensor:
        """Rotates row t of [T, N, H] back from its position; x stays as it is."""
        back = -self.sin_LF[positions_T]
        rows_T = torch.arange(len(positions_T), device=positions_T.device)
        scaled = x_TNH / self.scale**2  # both rotations make it longer
        return kernel.rotate(scaled, self.cos_LF[positions_T], back, rows_T)


def frequencies(head_size: int, theta: float) -> Tensor:
    """Radians per position of each pair: theta ** (-2i / H), float64 [F]."""
    if head_size < 2 or head_size % 2:
        raise ValueError(f"rotary positions need an even head size, not {head_size}")
    return theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)


def tables(
    frequency: Tensor, context: int, device: torch.device | str, dtype: torch.dtype, *, scale: float = 1.0
) -> Rotary:
    """Fills the tables of positions 0 .. context - 1.

    frequency: float64 [F], or [L, F] where each position has its own. Angles are float64; tables are float32, or
    float64 for a float64 model.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shape = (context, frequency.shape[-1])
    cos_LF, sin_LF = torch.empty(shape, dtype=wide), torch.empty(shape, dtype=wide)
    for start in range(0, context, _ROWS):
        rows = slice(start, min(start + _ROWS, context))
        position_L1 = torch.arange(rows.start, rows.stop, dtype=torch.float64).unsqueeze(1)
        angle_LF = position_L1 * (frequency if frequency.ndim == 1 else frequency[rows])
        cos_LF[rows] = angle_LF.cos() * scale
        sin_LF[rows] = angle_LF.sin() * scale
    return Rotary(cos_LF.to(device), sin_LF.to(device), scale)
