"""The obvious PyTorch twin of bf16_linear, and the packed layout that kernel.h draws."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK, TILE, CHUNK = 64, 16, 32
"""Outputs per block, outputs per tile, inputs per chunk."""


def packed_items(outputs: int, width: int) -> int:
    """Numbers of a packed matrix."""
    return -(-outputs // BLOCK) * BLOCK * (-(-width // CHUNK) * CHUNK)


def pack(weight_OI: Tensor) -> Tensor:
    """bfloat16 [O, I] -> packed, flat."""
    whole = F.pad(weight_OI, (0, -weight_OI.shape[1] % CHUNK, 0, -weight_OI.shape[0] % BLOCK))
    tiles = whole.view(len(whole) // BLOCK, BLOCK // TILE, TILE, -1, CHUNK // 2, 2)
    return tiles.permute(0, 3, 1, 4, 2, 5).flatten()


def unpack(packed: Tensor, outputs: int, width: int) -> Tensor:
    """Packed, flat -> bfloat16 [O, I]."""
    tiles = packed.view(-(-outputs // BLOCK), -1, BLOCK // TILE, CHUNK // 2, TILE, 2)
    whole = tiles.permute(0, 2, 4, 1, 3, 5).reshape(-(-outputs // BLOCK) * BLOCK, -1)
    return whole[:outputs, :width]


def multiply(x_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """float32 rows, rounded to bfloat16, times bfloat16 weights, summed in float32."""
    return x_TI.to(torch.bfloat16).float() @ weight_OI.float().T
