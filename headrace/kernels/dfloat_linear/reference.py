"""The obvious PyTorch twin of dfloat_linear, and the packed layout that kernel.h draws.

Shape suffixes beside those of headrace/types.py: O outputs, I inputs, B blocks, C chunks, E escapes, P places of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.kernels.bf16_linear import reference as bf16
from headrace.kernels.bf16_linear.reference import BLOCK, CHUNK, TILE
from headrace.kernels.int_linear.layout import read_registers, write_registers

ENTRIES, REGISTER, HEAD = 8, 64, 64
"""Exponents of a table, weights of a register, bytes before a block's chunks."""
PLACES = BLOCK * CHUNK
_REST = TILE * CHUNK
_TILE_BYTES = 3 * REGISTER + _REST
_CHUNK_BYTES = BLOCK // TILE * _TILE_BYTES
_EIGHTS = [0, 2, 1, 3, 4, 6, 5, 7]
"""Of a register's bytes: the order that interleaving within halves of a register undoes."""
_DAMAGED = "the escaped exponents of a weight are damaged in memory: load the model again"


class Parts(NamedTuple):
    """A packed weight."""

    planes: Tensor
    """uint8, flat: tables, codes, signs and mantissas."""
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
    outputs, width = weight_OI.shape
    chunks = -(-width // CHUNK)
    words_BCP = bf16.pack(weight_OI).view(torch.int16).view(-1, chunks, PLACES).int() & 0xFFFF
    exists_BCP = bf16.pack(torch.ones_like(weight_OI)).view(-1, chunks, PLACES) > 0
    exponents_BCP = torch.where(exists_BCP, words_BCP >> 7 & 0xFF, 0)
    rest_BCP = torch.where(exists_BCP, words_BCP >> 8 & 0x80 | words_BCP & 0x7F, 0)
    planes, stretches = [], []
    for exponents_CP, rest_CP, exists_CP in zip(exponents_BCP, rest_BCP, exists_BCP, strict=True):
        entries = _commonest(exponents_CP[exists_CP])
        codes = torch.full((256,), -1).index_put_((entries,), torch.arange(ENTRIES))[exponents_CP]
        codes[~exists_CP] = 0
        head = torch.zeros(HEAD, dtype=torch.uint8)
        head[:ENTRIES] = entries
        planes += [head, _tiles(codes.clamp(min=0), rest_CP)]
        stretches.append(_escapes(codes < 0, exponents_CP))
    return Parts(torch.cat(planes), *join(stretches))


def _commonest(exponents: Tensor) -> Tensor:
    """The eight that get codes, the smaller first of two that are equally common; never that of infinities."""
    seen = torch.bincount(exponents, minlength=256)[:255]
    return seen.sort(descending=True, stable=True).indices[:ENTRIES]


def _tiles(codes_CP: Tensor, rest_CP: Tensor) -> Tensor:
    registers = [_reordered(t.to(torch.uint8)).view(-1, _REST // REGISTER, REGISTER) for t in (codes_CP, rest_CP)]
    return torch.cat([write_registers(registers[0], 3).flatten(1), registers[1].flatten(1)], -1).flatten()


def _reordered(places: Tensor) -> Tensor:
    """Bytes by weight to bytes as they are kept, and back."""
    return places.reshape(-1, 8, 8)[:, _EIGHTS].reshape(places.shape)


def _escapes(missing_CP: Tensor, exponents_CP: Tensor) -> Tensor:
    found = []
    for missing_P, exponents_P in zip(missing_CP, exponents_CP, strict=True):
        listed, last = [], 0
        for place in missing_P.nonzero().flatten().tolist():
            for between in range(last + 255, place, 255):
                listed += [255, int(exponents_P[between])]
                last = between
            listed += [place - last, int(exponents_P[place])]
            last = place
        count = len(listed) // 2
        found.append(torch.tensor([count & 0xFF, count >> 8, *listed], dtype=torch.uint8))
    return torch.cat(found)


def unpack(parts: Parts, outputs: int, width: int) -> Tensor:
    """Parts -> bfloat16 [O, I]. Raises ValueError where the escapes are not what was packed."""
    chunks = -(-width // CHUNK)
    blocks = parts.planes.view(-1, HEAD + chunks * _CHUNK_BYTES)
    tiles = blocks[:, HEAD:].reshape(-1, _TILE_BYTES)
    codes = read_registers(tiles[:, : 3 * REGISTER], 3)
    codes_BP = _reordered(codes).view(len(blocks), -1).long()
    rest_BP = _reordered(tiles[:, 3 * REGISTER :]).reshape(len(blocks), -1).int()
    exponents_BP = blocks[:, :ENTRIES].gather(1, codes_BP).int()
    starts = parts.starts_B.tolist()
    for b, exponents_P in enumerate(exponents_BP):
        if not 0 <= starts[b] <= starts[b + 1] <= len(parts.escapes):
            raise ValueError(_DAMAGED)
        _put(exponents_P.view(chunks, PLACES), parts.escapes[starts[b] : starts[b + 1]].tolist())
    words = (rest_BP & 0x80) << 8 | exponents_BP << 7 | rest_BP & 0x7F
    return bf16.unpack(words.to(torch.int16).view(torch.bfloat16).flatten(), outputs, width)


def _put(exponents_CP: Tensor, escapes: list[int]) -> None:
    at = 0
    for exponents_P in exponents_CP:
        count = escapes[at] + 256 * escapes[at + 1] if at + 2 <= len(escapes) else len(escapes)
        listed = escapes[at + 2 : at + 2 + 2 * count]
        place, at = 0, at + 2 + 2 * count
        if at > len(escapes):
            raise ValueError(_DAMAGED)
        for gap, exponent in zip(listed[::2], listed[1::2], strict=True):
            place += gap
            if place >= PLACES:
                raise ValueError(_DAMAGED)
            exponents_P[place] = exponent
    if at != len(escapes):
        raise ValueError(_DAMAGED)
