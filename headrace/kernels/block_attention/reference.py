"""The obvious PyTorch twin of block_attention: round, pack, unpack, and attend to what was unpacked."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.kernels.block_attention.store import BlockStore, tile, untile


def write(arena_PX: Tensor, store: BlockStore, k_TGH: Tensor, v_TGH: Tensor, slots_T: Tensor) -> None:
    """See the package."""
    first_B = slots_T[:: store.block_tokens]
    k_BGHL = k_TGH.unflatten(0, (-1, store.block_tokens)).permute(0, 2, 3, 1).float()
    v_BGLH = v_TGH.unflatten(0, (-1, store.block_tokens)).transpose(1, 2).float()
    keys, key_scale, key_least = quantise(k_BGHL, store.group, store.bits)
    values, value_scale, value_least = quantise(v_BGLH, store.channels, store.bits)
    arrays = (
        tile(keys.mT, store.bits),
        key_scale.mT,
        key_least.mT,
        tile(values.mT, store.bits),
        value_scale.mT,
        value_least.mT,
    )
    block_BGX = torch.cat([array.contiguous().view(torch.uint8).flatten(2) for array in arrays], -1)
    page_B1 = (first_B // store.page_tokens)[:, None]
    columns_BX = store.columns(first_B % store.page_tokens // store.block_tokens)
    arena_PX[page_B1, columns_BX] = block_BGX.flatten(1)


def read(arena_PX: Tensor, store: BlockStore, pages_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """See the package."""
    H, L, each = store.head_size, store.block_tokens, store.page_tokens // store.block_tokens
    index_B = torch.arange(-(-length // L), device=arena_PX.device)
    found_BX = arena_PX[pages_B[index_B // each][:, None], store.columns(index_B % each)]
    pieces = found_BX.unflatten(1, (store.kv_heads, -1)).split(store.sizes, dim=-1)
    keys, k_scale, k_least, values, v_scale, v_least = (
        piece if i % 3 == 0 else piece.contiguous().view(torch.bfloat16).unflatten(2, shape)
        for i, (piece, shape) in enumerate(zip(pieces, store.shapes, strict=True))
    )
    k_BGHL = dequantise(untile(keys, L, H, store.bits).mT, k_scale.mT, k_least.mT)
    v_BGLH = dequantise(untile(values, H, L, store.bits).mT, v_scale.mT, v_least.mT)
    k_TGH, v_TGH = k_BGHL.permute(0, 3, 1, 2).flatten(0, 1), v_BGLH.transpose(1, 2).flatten(0, 1)
    return k_TGH[:length], v_TGH[:length]


def quantise(x: Tensor, group: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """[..., n] float32 -> codes [..., n] uint8, scales and least values [..., n / group] bfloat16.

    Rounded are scale and least value first: codes are to what will be read. A group that holds a NaN reads as NaN.
    """
    grouped = x.unflatten(-1, (-1, group))
    least, most = grouped.aminmax(dim=-1)
    top = (1 << bits) - 1
    least, scale = least.bfloat16(), ((most - least) / top).bfloat16()
    step = scale.float()[..., None]
    steps = torch.where(step > 0, (grouped - least.float()[..., None]) / step, 0.0)
    codes = steps.round().nan_to_num(0.0).clamp(0, top).to(torch.uint8).flatten(-2)
    return codes, scale, least


def dequantise(codes: Tensor, scale: Tensor, least: Tensor) -> Tensor:
    """What quantise rounded to, in float32."""
    grouped = codes.unflatten(-1, (scale.shape[-1], -1)).float()
    return (grouped * scale.float()[..., None] + least.float()[..., None]).flatten(-2)
