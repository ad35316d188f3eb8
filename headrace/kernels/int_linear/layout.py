"""Packed integer weights: the values that go in, and the bytes that kernel.h draws.

Shape suffixes beside those of headrace/types.py: O outputs, I inputs, G groups of inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK, TILE, CHUNK = 64, 16, 32
"""Outputs per block, outputs per tile, inputs per chunk."""


class Rows(NamedTuple):
    """Quantised activations: value = scale * code."""

    codes_TI: Tensor
    """int8, padded to whole chunks with zeros."""
    scales_T: Tensor
    """float32."""
    sums_TG: Tensor
    """int32, of the codes of each group."""


@dataclass(frozen=True)
class IntWeight:
    """A weight matrix [O, I] as `bits`-bit codes: value = scale * (code - zero), one scale per output and group."""

    packed: Tensor
    """uint8, contiguous."""
    outputs: int
    width: int
    group: int
    """Inputs that share a scale: a multiple of 32, or the whole width."""
    bits: int
    zeros: bool
    """Whether zero points are stored; else they are 2 ** (bits - 1)."""
    few: int = 8
    """Up to so many rows, products unpack codes in registers; with more, into the cache. The same bits either way:
    headrace.kernels.int_linear.crossing measures where one overtakes the other."""

    @property
    def groups(self) -> int:
        return -(-self.width // self.group)

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def unpack(self) -> tuple[Tensor, Tensor, Tensor]:
        """codes uint8 [O, I], scales float16 [O, G], zeros uint8 [O, G]."""
        blocks = self.packed.view(-1, block_bytes(self.width, self.group, self.bits, self.zeros))
        codes, scales, zeros = [], [], []
        at = 0
        for chunks in group_chunks(self.width, self.group):
            scales.append(blocks[:, at : at + 2 * BLOCK].contiguous().view(torch.float16))
            at += 2 * BLOCK
            zeros.append(
                blocks[:, at : at + BLOCK]
                if self.zeros
                else torch.full((len(blocks), BLOCK), 1 << (self.bits - 1))
            )
            at += BLOCK if self.zeros else 0
            size = chunks * 4 * 64 * self.bits
            codes.append(read_planes(blocks[:, at : at + size].unflatten(1, (chunks, 4, -1)), self.bits))
            at += size
        codes_OI = torch.cat(codes, dim=-1)[: self.outputs, : self.width]
        scales_OG, zeros_OG = (
            torch.stack(parts, -1).flatten(0, 1)[: self.outputs] for parts in (scales, zeros)
        )
        return codes_OI, scales_OG, zeros_OG.to(torch.uint8)

    def dequantise(self) -> Tensor:
        """float32 [O, I]."""
        codes_OI, scales_OG, zeros_OG = self.unpack()
        spread = [t.float().repeat_interleave(self.group, -1)[:, : self.width] for t in (scales_OG, zeros_OG)]
        return (codes_OI.float() - spread[1]) * spread[0]


def group_chunks(width: int, group: int) -> list[int]:
    """Chunks of each group."""
    return [-(-min(group, width - start) // CHUNK) for start in range(0, width, group)]


def block_bytes(width: int, group: int, bits: int, zeros: bool) -> int:
    """Bytes of 64 outputs."""
    chunks = group_chunks(width, group)
    return len(chunks) * BLOCK * (3 if zeros else 2) + sum(chunks) * 4 * 64 * bits


def packed_bytes(outputs: int, width: int, group: int, bits: int, zeros: bool) -> int:
    """Bytes of a whole matrix."""
    return -(-outputs // BLOCK) * block_bytes(width, group, bits, zeros)


def pad(x: Tensor, multiple: int) -> Tensor:
    """Zeros at the end of the last axis."""
    return F.pad(x, (0, -x.shape[-1] % multiple))


def planes(bits: int) -> list[tuple[int, int]]:
    """(width, lowest bit) of each plane, in the order of the bytes."""
    found, at = [], 0
    for width in (8, 4, 2, 1):
        if bits & width:
            found.append((width, at))
            at += width
    return found


def read_planes(tiles: Tensor, bits: int) -> Tensor:
    """uint8 [blocks, chunks, 4, 64 * bits] -> codes [blocks * 64, chunks * 32]."""
    codes = torch.zeros(*tiles.shape[:3], 8, 64, dtype=torch.uint8)
    start = 0
    for width, low in planes(bits):
        registers = tiles[..., start : start + 64 * width].unflatten(-1, (width, 64))
        start += 64 * width
        for quad in range(8):
            field = registers[..., quad % width, :] >> (quad // width * width)
            codes[..., quad, :] |= (field & ((1 << width) - 1)) << low
    B, C = tiles.shape[:2]
    return codes.view(B, C, 4, 8, 16, 4).permute(0, 2, 4, 1, 3, 5).reshape(B * BLOCK, C * CHUNK)


def write_planes(codes_OI: Tensor, bits: int) -> Tensor:
    """Codes of whole blocks and chunks -> uint8 [blocks, chunks, 4, 64 * bits]."""
    quads = codes_OI.view(len(codes_OI) // BLOCK, 4, TILE, -1, 8, 4).permute(0, 3, 1, 4, 2, 5).flatten(-2)
    parts = []
    for width, low in planes(bits):
        plane = (quads >> low) & ((1 << width) - 1)
        registers = torch.zeros_like(plane[..., :width, :])
        for quad in range(8):
            registers[..., quad % width, :] |= plane[..., quad, :] << (quad // width * width)
        parts.append(registers.flatten(-2))
    return torch.cat(parts, -1)


def pack(codes_OI: Tensor, scales_OG: Tensor, zeros_OG: Tensor | None, group: int, bits: int) -> Tensor:
    """The packed bytes; see IntWeight for the arguments."""
    rows = -len(codes_OI) % BLOCK
    heads = [F.pad(t.float(), (0, 0, 0, rows)) for t in (scales_OG, zeros_OG) if t is not None]
    parts = []
    for g, codes in enumerate(F.pad(codes_OI, (0, 0, 0, rows)).split(group, -1)):
        parts.append(heads[0][:, g].half().view(-1, BLOCK).view(torch.uint8))
        if zeros_OG is not None:
            parts.append(heads[1][:, g].to(torch.uint8).view(-1, BLOCK))
        parts.append(write_planes(pad(codes, CHUNK), bits).flatten(1))
    return torch.cat(parts, -1).flatten()
