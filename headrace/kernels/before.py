"""What happens to the rows of a product before it: a norm or a gate, which kernels do on the way in."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from headrace.kernels.rms_norm import rms_norm


class Norm(NamedTuple):
    """An RMS norm: x / rms(x) * (offset + weight)."""

    weight_D: Tensor
    eps: float
    offset: float = 0.0


Gate = Literal["silu", "gelu_tanh"]
"""Rows hold two halves and become act(first) * second: what follows the stacked first matrices of a gated MLP."""

Before = Norm | Gate | None


def apply(before: Before, x: Tensor) -> Tensor:
    """Does it as an operation of its own: [T, I] -> [T, I], or [T, 2 I] -> [T, I] for a gate."""
    if before is None:
        return x
    if isinstance(before, Norm):
        return rms_norm(x, before.weight_D, before.eps, weight_offset=before.offset)
    gate, up = x.chunk(2, dim=-1)
    return (F.silu(gate) if before == "silu" else F.gelu(gate, approximate="tanh")).mul_(up)


_KINDS = {None: 0, "silu": 2, "gelu_tanh": 3}
_RMS_NORM = 1


def native_before(before: Before) -> tuple[int, Tensor | None, float, float]:
    """As native products take it: kind (headrace/product.h), the norm's weight, its eps and its offset."""
    if isinstance(before, Norm):
        return _RMS_NORM, before.weight_D, before.eps, before.offset
    return _KINDS[before], None, 0.0, 0.0
