"""Packed bit planes: the values that go in, and the bytes that kernel.h draws.

Shape suffixes beside those of headrace/types.py: O outputs, I inputs, G groups of inputs, P bit planes, J quads of
inputs, E entries of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.kernels.int_linear.layout import BLOCK, CHUNK, group_chunks, pad
from headrace.kernels.int_linear.layout import block_bytes as int_block_bytes

RUN = 128
"""Inputs whose planes lie together."""
MAX_BITS, MAX_WIDTH = 4, 1 << 20


class Tables(NamedTuple):
    """Rows of activations: entry e of a quad stands for the sum of its inputs, input i with a minus unless bit i of e
    is set."""

    entries_TJE: Tensor
    """int16 in [-63, 63], in units of their group's scale; quads that pad the width are 0."""
    scales_TG: Tensor
    """float32."""
    sums_TG: Tensor
    """int32, of the entries 15 of each group."""


@dataclass(frozen=True)
class LutWeight:
    """A weight matrix [O, I] as `bits` bit planes: value = scale * (code - zero), one scale per output and group.

    The zero is 2 ** (bits - 1), so that a weight can be 0; with one bit it is 1/2, so that none is.
    """

    packed: Tensor
    """uint8, contiguous."""
    outputs: int
    width: int
    group: int
    """Inputs that share a scale: a multiple of 32, or the whole width."""
    bits: int
    wide: bool = False
    """The order of its planes: that of the level that packed it, which alone may multiply it."""

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    @property
    def zero(self) -> float:
        return zero_of(self.bits)

    def unpack(self) -> tuple[Tensor, Tensor]:
        """codes uint8 [O, I], scales float16 [O, G]."""
        blocks = self.packed.view(-1, block_bytes(self.width, self.group, self.bits))
        codes, scales = [], []
        at = 0
        for chunks in group_chunks(self.width, self.group):
            scales.append(blocks[:, at : at + 2 * BLOCK].contiguous().view(torch.float16))
            at += 2 * BLOCK
            for inputs in runs(chunks * CHUNK):
                size = inputs * BLOCK * self.bits // 8
                codes.append(read_run(blocks[:, at : at + size], self.bits, self.wide))
                at += size
        codes_OI = torch.cat(codes, dim=-1)[: self.outputs, : self.width]
        return codes_OI, torch.stack(scales, -1).flatten(0, 1)[: self.outputs]

    def dequantise(self) -> Tensor:
        """float32 [O, I]."""
        codes_OI, scales_OG = self.unpack()
        scale_OI = scales_OG.float().repeat_interleave(self.group, -1)[:, : self.width]
        return (codes_OI.float() - self.zero) * scale_OI


def zero_of(bits: int) -> float:
    """The code, or what lies between two, that stands for 0."""
    return 0.5 if bits == 1 else float(1 << (bits - 1))


def block_bytes(width: int, group: int, bits: int) -> int:
    """Bytes of 64 outputs: those of int_linear."""
    return int_block_bytes(width, group, bits, zeros=False)


def packed_bytes(outputs: int, width: int, group: int, bits: int) -> int:
    """Bytes of a whole matrix."""
    return -(-outputs // BLOCK) * block_bytes(width, group, bits)


def runs(inputs: int) -> list[int]:
    """Inputs of each run of a group."""
    return [min(RUN, inputs - start) for start in range(0, inputs, RUN)]


def write_run(codes_OI: Tensor, bits: int, wide: bool = False) -> Tensor:
    """Codes of whole blocks and chunks, a run at most -> uint8 [blocks, bytes]."""
    blocks = len(codes_OI) // BLOCK
    if wide:
        halves_OI = codes_OI.unflatten(1, (-1, 2, 4, 4)).transpose(2, 3).flatten(1)
        planes_OPJ = torch.stack([gather_octets(halves_OI >> b & 1) for b in range(bits)], 1)
        return planes_OPJ.view(blocks, 4, 16, bits, -1, 4).permute(0, 4, 1, 3, 2, 5).flatten(1)
    parts = []
    for low in range(0, bits, 2):
        planes = [gather_octets(codes_OI >> b & 1) for b in range(low, min(low + 2, bits))]
        if len(planes) == 2:  # [octet, output, plane]
            octets = torch.stack(planes, -1).view(blocks, BLOCK, -1, 2).transpose(1, 2)
        else:  # [octet, half of the outputs, output, sixteen of a half]
            octets = planes[0].view(blocks, 2, 2, BLOCK // 4, -1).permute(0, 4, 1, 3, 2)
        parts.append(octets.flatten(1))
    return torch.cat(parts, -1)


def read_run(run: Tensor, bits: int, wide: bool = False) -> Tensor:
    """uint8 [blocks, bytes] -> codes [blocks * 64, inputs]."""
    if wide:
        planes_POJ = (
            run.reshape(len(run), -1, 4, bits, 16, 4).permute(3, 0, 2, 4, 1, 5).flatten(1, 3).flatten(2)
        )
        halves_OI = torch.stack([scatter_octets(plane) << b for b, plane in enumerate(planes_POJ)]).sum(0)
        halves_OI = halves_OI.to(torch.uint8)
        return halves_OI.unflatten(1, (-1, 4, 2, 4)).transpose(2, 3).flatten(1)
    blocks, octets = len(run), run.shape[1] // (BLOCK * bits)
    codes = torch.zeros(blocks * BLOCK, octets * 8, dtype=torch.uint8)
    at = 0
    for low in range(0, bits, 2):
        pair = low + 1 < bits
        size = octets * BLOCK * (2 if pair else 1)
        part = run[:, at : at + size]
        at += size
        if pair:
            planes = part.reshape(blocks, octets, BLOCK, 2).transpose(1, 2).flatten(0, 1).unbind(-1)
        else:
            planes = (
                part.reshape(blocks, octets, 2, BLOCK // 4, 2).permute(0, 2, 4, 3, 1).reshape(-1, octets),
            )
        for b, plane in enumerate(planes, low):
            codes |= scatter_octets(plane) << b
    return codes


def gather_octets(bits_OI: Tensor) -> Tensor:
    """Bits as bytes of eight neighbouring inputs, the first one lowest: [O, I / 8]."""
    return (bits_OI.unflatten(1, (-1, 8)) << torch.arange(8, dtype=torch.uint8)).sum(-1).to(torch.uint8)


def scatter_octets(bytes_OI: Tensor) -> Tensor:
    """The inverse of gather_octets."""
    return (bytes_OI[..., None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1)


def pack(codes_OI: Tensor, scales_OG: Tensor, group: int, bits: int, wide: bool = False) -> Tensor:
    """The packed bytes; see LutWeight for the arguments."""
    rows = -len(codes_OI) % BLOCK
    scales = F.pad(scales_OG.float(), (0, 0, 0, rows)).half()
    parts = []
    for g, codes in enumerate(F.pad(codes_OI, (0, 0, 0, rows)).split(group, -1)):
        parts.append(scales[:, g].contiguous().view(-1, BLOCK).view(torch.uint8))
        parts += [write_run(run, bits, wide) for run in pad(codes, CHUNK).split(RUN, -1)]
    return torch.cat(parts, -1).flatten()
