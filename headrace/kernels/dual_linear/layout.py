"""Packed dual-grained weights: the values that go in, and the bytes that kernel.h draws.

Shape suffixes beside those of headrace/types.py: O outputs, I inputs, G groups of inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.kernels.int_linear.layout import BLOCK, CHUNK, group_chunks, pad, read_planes, write_planes

MAX_WIDTH = 1 << 17
"""Inputs: 2^17 * 128 * 127 < 2^31, so that a row's sum of w8 * a fits in 32 bits."""
MAX_STEP, MAX_CODE = 16, 15
_CHUNK_BYTES = 4 * 64 * 4


class Parts(NamedTuple):
    """What is packed: weight = scale * w8, w8 = step * (code - zero), -128 <= w8 <= 127."""

    codes_OI: Tensor
    """uint8, at most 15."""
    steps_OG: Tensor
    """uint8, 1 to 16."""
    zeros_OG: Tensor
    """uint8, at most 15."""
    scales_O: Tensor
    """float32."""


@dataclass(frozen=True)
class DualWeight:
    """A weight matrix [O, I] in codes of 4 bits, with a whole-numbered step per group and one scale per output."""

    packed: Tensor
    """uint8, contiguous."""
    outputs: int
    width: int
    group: int
    """Inputs that share a step: a multiple of 32, or the whole width."""

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def unpack(self) -> Parts:
        blocks = self.packed.view(-1, block_bytes(self.width, self.group))
        scales = blocks[:, : 4 * BLOCK].contiguous().view(torch.float32)
        codes, heads = [], []
        at = 4 * BLOCK
        for chunks in group_chunks(self.width, self.group):
            heads.append(blocks[:, at : at + BLOCK])
            at += BLOCK
            tiles = blocks[:, at : at + chunks * _CHUNK_BYTES].unflatten(1, (chunks, 4, -1))
            codes.append(read_planes(tiles, 4))
            at += chunks * _CHUNK_BYTES
        heads_OG = torch.stack(heads, -1).flatten(0, 1)[: self.outputs]
        return Parts(
            torch.cat(codes, dim=-1)[: self.outputs, : self.width],
            (heads_OG & 15) + 1,
            heads_OG >> 4,
            scales.flatten()[: self.outputs],
        )

    def w8(self) -> Tensor:
        """int32 [O, I]: the weights in units of their output's scale."""
        return to_w8(self.unpack(), self.group)

    def dequantise(self) -> Tensor:
        """float32 [O, I]."""
        return self.w8().float() * self.unpack().scales_O[:, None]


def to_w8(parts: Parts, group: int) -> Tensor:
    """step * (code - zero) as int32 [O, I]."""
    width = parts.codes_OI.shape[1]
    step_OI, zero_OI = (
        t.int().repeat_interleave(group, -1)[:, :width] for t in (parts.steps_OG, parts.zeros_OG)
    )
    return step_OI * (parts.codes_OI.int() - zero_OI)


def block_bytes(width: int, group: int) -> int:
    """Bytes of 64 outputs."""
    chunks = group_chunks(width, group)
    return 4 * BLOCK + len(chunks) * BLOCK + sum(chunks) * _CHUNK_BYTES


def packed_bytes(outputs: int, width: int, group: int) -> int:
    """Bytes of a whole matrix."""
    return -(-outputs // BLOCK) * block_bytes(width, group)


def pack(parts: Parts, group: int) -> Tensor:
    """The packed bytes. Raises ValueError for what is no code, step or zero point, or gives more than a signed byte."""
    outputs, width = parts.codes_OI.shape
    group = min(group, width)
    low, high = (int(x) for x in to_w8(parts, group).aminmax())
    if not (
        -128 <= low
        and high <= 127
        and int(parts.codes_OI.max()) <= MAX_CODE
        and int(parts.zeros_OG.max()) <= MAX_CODE
        and 1 <= int(parts.steps_OG.min())
        and int(parts.steps_OG.max()) <= MAX_STEP
    ):
        raise ValueError(
            f"weights from {low} to {high} times their scale: codes and zero points must be 0 to {MAX_CODE}, "
            f"steps 1 to {MAX_STEP}, and step * (code - zero) -128 to 127"
        )
    rows = -outputs % BLOCK
    heads_OG = F.pad(parts.steps_OG - 1 + (parts.zeros_OG << 4), (0, 0, 0, rows))
    pieces = [F.pad(parts.scales_O, (0, rows)).view(-1, BLOCK).view(torch.uint8)]
    for g, codes in enumerate(F.pad(parts.codes_OI, (0, 0, 0, rows)).split(group, -1)):
        pieces.append(heads_OG[:, g].reshape(-1, BLOCK))
        pieces.append(write_planes(pad(codes, CHUNK), 4).flatten(1))
    return torch.cat(pieces, -1).flatten()
