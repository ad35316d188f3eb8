"""The obvious PyTorch twin of dfloat_linear, and the packed layout that kernel.h draws.

Shape suffixes beside those of headrace/types.py: O outputs, I inputs, B blocks, C chunks, P places of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.kernels.bf16_linear import reference as bf16
from headrace.kernels.bf16_linear.reference import BLOCK, CHUNK, TILE

ENTRIES, REGISTER, HEAD = 8, 64, 64
"""High bytes of a table, weights of a register, bytes before a block's chunks."""
PLACES = BLOCK * CHUNK
_TILE_BYTES = 3 * REGISTER + TILE * CHUNK
_CHUNK_BYTES = BLOCK // TILE * _TILE_BYTES
_EIGHTS = [0, 2, 1, 3, 4, 6, 5, 7]
"""Of a register's bytes: the order that interleaving within halves of a register undoes."""
_DAMAGED = "the escapes of a weight are damaged in memory: load the model again"


class Parts(NamedTuple):
    """A packed weight."""

    planes: Tensor
    """uint8, flat: tables, codes and low bytes."""
    escapes: Tensor
    """uint8, flat."""
    starts_B: Tensor
    """int64 [blocks + 1]: where each block's escapes begin, and the last ones end."""


def plane_bytes(outputs: int, width: int) -> int:
    """Of a matrix, whatever its weights are."""
    return -(-outputs // BLOCK) * (HEAD + -(-width // CHUNK) * _CHUNK_BYTES)


def most_escape_bytes(width: int) -> int:
    """Of a block, if nothing has a code."""
    return -(-width // CHUNK) * (2 + 2 * PLACES)


def join(stretches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The blocks' escapes, one after the other, and where each begins."""
    sizes = torch.tensor([0, *(len(stretch) for stretch in stretches)])
    return torch.cat(list(stretches)), sizes.cumsum(0)


def pack(weight_OI: Tensor) -> Parts:
    """bfloat16 [O, I] -> parts."""
    chunks = -(-weight_OI.shape[1] // CHUNK)
    words_BCP = bf16.pack(weight_OI).view(torch.int16).view(-1, chunks, PLACES).int() & 0xFFFF
    exists_BCP = bf16.pack(torch.ones_like(weight_OI)).view(-1, chunks, PLACES) > 0
    planes, stretches = [], []
    for words_CP, exists_CP in zip(words_BCP, exists_BCP, strict=True):
        high_CP = words_CP >> 8
        table = _commonest(high_CP[exists_CP])
        low_CP, high_CP = (
            torch.where(exists_CP, t, pad) for t, pad in ((words_CP & 0xFF, 0), (high_CP, table[0].int()))
        )
        codes_CP = torch.full((256,), -1).index_put_((table,), torch.arange(ENTRIES))[high_CP]
        planes += [F.pad(table.to(torch.uint8), (0, HEAD - ENTRIES)), _tiles(codes_CP.clamp(min=0), low_CP)]
        stretches += [_escapes(*chunk) for chunk in zip(codes_CP < 0, high_CP, strict=True)]
    sizes = torch.tensor([len(stretch) for stretch in stretches]).view(-1, chunks).sum(1)
    return Parts(torch.cat(planes), torch.cat(stretches), F.pad(sizes.cumsum(0), (1, 0)))


def _commonest(high: Tensor) -> Tensor:
    """The eight that get codes, the smaller first of two that are equally common."""
    seen = torch.bincount(high, minlength=256)
    return seen.sort(descending=True, stable=True).indices[:ENTRIES]


def _tiles(codes_CP: Tensor, low_CP: Tensor) -> Tensor:
    codes, low = (_reordered(t.to(torch.uint8).view(-1, 8, REGISTER)) for t in (codes_CP, low_CP))
    packed = codes[:, 0:6:2] | codes[:, 1:6:2] << 4
    for r in range(3):
        packed[:, r] |= (codes[:, 6] >> r & 1) << 3 | (codes[:, 7] >> r & 1) << 7
    return torch.cat([packed.flatten(1), low.flatten(1)], -1).flatten()


def _reordered(registers: Tensor) -> Tensor:
    """Bytes by weight to bytes as they are kept, and back."""
    return registers.unflatten(-1, (8, 8))[..., _EIGHTS, :].flatten(-2)


def _escapes(missing_P: Tensor, high_P: Tensor) -> Tensor:
    listed, last = [], 0
    for place in missing_P.nonzero().flatten().tolist():
        for between in (*range(last + 255, place, 255), place):
            listed += [between - last, int(high_P[between])]
            last = between
    count = len(listed) // 2
    return torch.tensor([count & 0xFF, count >> 8, *listed], dtype=torch.uint8)


def unpack(parts: Parts, outputs: int, width: int) -> Tensor:
    """Parts -> bfloat16 [O, I]. Raises ValueError where the escapes are not what was packed."""
    chunks = -(-width // CHUNK)
    blocks = parts.planes.view(-1, HEAD + chunks * _CHUNK_BYTES)
    registers = blocks[:, HEAD:].unflatten(1, (-1, _TILE_BYTES // REGISTER, REGISTER))
    packed, low = _reordered(registers).split((3, 8), -2)
    bits = [packed >> 3 & 1, packed >> 7 & 1]
    codes = torch.stack([packed & 7, packed >> 4 & 7], -2).flatten(-3, -2)
    spread = torch.stack([b[..., 0, :] | b[..., 1, :] << 1 | b[..., 2, :] << 2 for b in bits], -2)
    codes_BP = torch.cat([codes, spread], -2).flatten(1).long()
    high_BP = blocks[:, :ENTRIES].gather(1, codes_BP).int()
    starts = parts.starts_B.tolist()
    for b, high_P in enumerate(high_BP):
        if not 0 <= starts[b] <= starts[b + 1] <= len(parts.escapes):
            raise ValueError(_DAMAGED)
        _put(high_P.view(chunks, PLACES), parts.escapes[starts[b] : starts[b + 1]].tolist())
    words = high_BP << 8 | low.flatten(1).int()
    return bf16.unpack(words.to(torch.int16).view(torch.bfloat16).flatten(), outputs, width)


def _put(high_CP: Tensor, escapes: list[int]) -> None:
    at = 0
    for high_P in high_CP:
        count = escapes[at] + 256 * escapes[at + 1] if at + 2 <= len(escapes) else len(escapes)
        listed = escapes[at + 2 : at + 2 + 2 * count]
        place, at = 0, at + 2 + 2 * count
        if at > len(escapes):
            raise ValueError(_DAMAGED)
        for gap, high in zip(listed[::2], listed[1::2], strict=True):
            place += gap
            if place >= PLACES:
                raise ValueError(_DAMAGED)
            high_P[place] = high
    if at != len(escapes):
        raise ValueError(_DAMAGED)
