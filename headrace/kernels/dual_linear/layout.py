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
MOST_W8 = {4: 119, 3: 111}
"""Bits -> the largest w8 that is rounded: what leaves half a step to the end of a signed byte."""


class Parts(NamedTuple):
    """What is packed: weight = scale * w8, w8 = step * (code - zero), -128 <= w8 <= 127."""

    codes_OI: Tensor
    """uint8, below 2 ** bits."""
    steps_OG: Tensor
    """uint8, 1 to 2 ** (8 - bits)."""
    zeros_OG: Tensor
    """uint8, below 2 ** bits."""
    scales_O: Tensor
    """float32."""


@dataclass(frozen=True)
class DualWeight:
    """A weight matrix [O, I] in codes of 3 or 4 bits, with a whole-numbered step per group and one scale per output."""

    packed: Tensor
    """uint8, contiguous."""
    outputs: int
    width: int
    group: int
    """Inputs that share a step: a multiple of 32, or the whole width."""
    bits: int

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def unpack(self) -> Parts:
        blocks = self.packed.view(-1, block_bytes(self.width, self.group, self.bits))
        scales = blocks[:, : 4 * BLOCK].contiguous().view(torch.float32)
        codes, heads = [], []
        at = 4 * BLOCK
        for chunks in group_chunks(self.width, self.group):
            heads.append(blocks[:, at : at + BLOCK])
            at += BLOCK
            size = chunks * _chunk_bytes(self.bits)
            codes.append(read_planes(blocks[:, at : at + size].unflatten(1, (chunks, 4, -1)), self.bits))
            at += size
        heads_OG = torch.stack(heads, -1).flatten(0, 1)[: self.outputs]
        return Parts(
            torch.cat(codes, dim=-1)[: self.outputs, : self.width],
            *read_heads(heads_OG, self.bits),
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


def write_heads(steps_OG: Tensor, zeros_OG: Tensor, bits: int) -> Tensor:
    """A byte of each step and zero point, uint8."""
    return (steps_OG - 1 + (zeros_OG << (8 - bits))).to(torch.uint8)


def read_heads(heads_OG: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Steps and zero points again."""
    return (heads_OG & (255 >> bits)) + 1, heads_OG >> (8 - bits)


def _chunk_bytes(bits: int) -> int:
    return 4 * 64 * bits


def block_bytes(width: int, group: int, bits: int) -> int:
    """Bytes of 64 outputs."""
    chunks = group_chunks(width, group)
    return 4 * BLOCK + len(chunks) * BLOCK + sum(chunks) * _chunk_bytes(bits)


def packed_bytes(outputs: int, width: int, group: int, bits: int) -> int:
    """Bytes of a whole matrix."""
    return -(-outputs // BLOCK) * block_bytes(width, group, bits)


def pack(parts: Parts, group: int, bits: int) -> Tensor:
    """The packed bytes. Raises ValueError for what is no code, step or zero point, or gives more than a signed byte."""
    outputs, width = parts.codes_OI.shape
    group = min(group, width)
    most_code, most_step = (1 << bits) - 1, 1 << (8 - bits)
    low, high = (int(x) for x in to_w8(parts, group).aminmax())
    if not (
        -128 <= low
        and high <= 127
        and int(parts.codes_OI.max()) <= most_code
        and int(parts.zeros_OG.max()) <= most_code
        and 1 <= int(parts.steps_OG.min())
        and int(parts.steps_OG.max()) <= most_step
    ):
        raise ValueError(
            f"weights from {low} to {high} times their scale: codes and zero points must be 0 to {most_code}, "
            f"steps 1 to {most_step}, and step * (code - zero) -128 to 127"
        )
    rows = -outputs % BLOCK
    heads_OG = F.pad(write_heads(parts.steps_OG, parts.zeros_OG, bits), (0, 0, 0, rows))
    pieces = [F.pad(parts.scales_O, (0, rows)).view(-1, BLOCK).view(torch.uint8)]
    for g, codes in enumerate(F.pad(parts.codes_OI, (0, 0, 0, rows)).split(group, -1)):
        pieces.append(heads_OG[:, g].reshape(-1, BLOCK))
        pieces.append(write_planes(pad(codes, CHUNK), bits).flatten(1))
    return torch.cat(pieces, -1).flatten()
