"""Where a block's codes lie."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LANES, QUAD = 16, 4
_PARAM = torch.bfloat16.itemsize


@dataclass(frozen=True)
class BlockStore:
    """One layer's part of the blocks in a page, block after block. Per kv head:

        codes of keys      tiles of tokens x channels
        their scales, their least values      [tokens / group][H] bfloat16 each
        codes of values    tiles of channels x tokens
        their scales, their least values      [H / channels][tokens] bfloat16 each

    A tile is 16 outer by 4 inner codes, in the order [16][4]; tiles follow each other along the inner axis, then along
    the outer. 8 / bits tiles share 64 bytes, the first lowest. So a vector of 64 bytes is a dot product's step: sixteen
    tokens, or channels, with four terms each.
    """

    at: int
    """Bytes from a block's beginning."""
    stride: int
    """Bytes of a block, all layers."""
    page_tokens: int
    block_tokens: int
    group: int
    """Tokens of a key's group."""
    channels: int
    """Channels of a value's group."""
    kv_heads: int
    head_size: int
    bits: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the six arrays of a head: codes in bytes, the others in numbers."""
        H, L = self.head_size, self.block_tokens
        keys, values = (L // self.group, H), (H // self.channels, L)
        return ((tiled_bytes(L, H, self.bits),), keys, keys, (tiled_bytes(H, L, self.bits),), values, values)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each."""
        return tuple(math.prod(s) * (1 if i % 3 == 0 else _PARAM) for i, s in enumerate(self.shapes))

    @property
    def nbytes(self) -> int:
        """Of all heads."""
        return self.kv_heads * sum(self.sizes)

    def columns(self, block_B: Tensor) -> Tensor:
        """Places in a page, [B, nbytes], of this layer's part of its block number block_B."""
        first_B1 = (block_B * self.stride + self.at)[:, None]
        return first_B1 + torch.arange(self.nbytes, device=block_B.device)


def tiled_bytes(outer: int, inner: int, bits: int) -> int:
    """Memory of outer x inner codes in tiles."""
    tiles = -(-outer // LANES) * -(-inner // QUAD)
    return -(-tiles * bits // 8) * LANES * QUAD


def tile(codes: Tensor, bits: int) -> Tensor:
    """[..., outer, inner] uint8 -> [..., bytes]."""
    outer, inner = codes.shape[-2:]
    pad = torch.nn.functional.pad(codes, (0, -inner % QUAD, 0, -outer % LANES))
    tiles = pad.unflatten(-1, (-1, QUAD)).unflatten(-3, (-1, LANES)).transpose(-2, -3).flatten(-2)
    tiles = tiles.flatten(-3, -2)  # [..., tiles, 64]
    per = 8 // bits
    tiles = torch.nn.functional.pad(tiles, (0, 0, 0, -tiles.shape[-2] % per)).unflatten(-2, (-1, per))
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    return (tiles << shifts[:, None]).sum(-2, dtype=torch.uint8).flatten(-2)


def untile(packed: Tensor, outer: int, inner: int, bits: int) -> Tensor:
    """tile's way back: [..., bytes] -> [..., outer, inner]."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    tiles = packed.unflatten(-1, (-1, 1, LANES * QUAD)) >> shifts[:, None] & ((1 << bits) - 1)
    rows, columns = -(-outer // LANES), -(-inner // QUAD)
    tiles = tiles.flatten(-3, -2)[..., : rows * columns, :].unflatten(-2, (rows, columns))
    codes = tiles.unflatten(-1, (LANES, QUAD)).transpose(-2, -3).flatten(-2).flatten(-3, -2)
    return codes[..., :outer, :inner]
