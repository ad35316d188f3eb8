"""Keys and values in 4 or 2 bits: keys in groups of tokens per channel, values in groups of channels per token.

Paper   https://arxiv.org/abs/2402.02750 (KIVI)
Idea    Some channels of keys are large in every token: a scale for a channel's numbers keeps them from drowning the
        others. Values have no such channels. A group has a scale and a least value, both bfloat16; codes between are
        even. Scales of keys need many tokens, so tokens wait, unrounded, until a block of them is whole.
Trades  4 bits and groups of 64 are 4.5 bits per number, beside 16; a block of each sequence stays in bfloat16.
Differs The paper keeps exactly the newest `residual` values in full, here those of the unfinished block, as with keys:
        so what a position reads does not depend on how its prompt was cut. Groups of 64, not 32: half a bit less.
        Attention multiplies codes as they are, with queries and weights in 8 bits (headrace/kernels/block_attention).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from headrace.kernels import block_attention
from headrace.kernels.attention import Queries, State
from headrace.kernels.block_attention import BlockStore
from headrace.kv.groups import ALIGN, GroupSpec
from headrace.slots import Card
from headrace.types import Reads


@dataclass(frozen=True, kw_only=True)
class Kivi:
    """Asymmetric codes, whatever the model's dtype is."""

    card: ClassVar[Card] = Card(
        slot="kv-codec", exact="lossy", paper="https://arxiv.org/abs/2402.02750", gives=("whole_blocks",)
    )
    rest: ClassVar[torch.dtype] = torch.bfloat16
    rotated: ClassVar[bool] = True
    bits: int = 4
    """Per number: 4 or 2."""
    group: int = 64
    """Tokens of a key's group; channels of a value's, or as many as divide a head."""
    residual: int = 64
    """Tokens that are rounded together: group, or twice, four times, ... as many."""

    def __post_init__(self) -> None:
        if self.bits not in (4, 2):
            raise ValueError(f"bits={self.bits} must be 4 or 2")
        if self.group not in (16, 32, 64, 128) or self.residual not in (self.group << i for i in range(4)):
            raise ValueError(
                f"group={self.group} must be 16, 32, 64 or 128, and residual={self.residual} 1, 2, 4 or 8 times that"
            )

    @property
    def block_tokens(self) -> int:
        return self.residual

    def page_bytes(self, group: GroupSpec, tokens: int, dtype: torch.dtype) -> int:
        used = -(-tokens // self.residual) * sum(self._layers(group).values())
        return -(-used // ALIGN) * ALIGN

    def start(self, group: GroupSpec, page_tokens: int, dtype: torch.dtype) -> _Live:
        sizes = self._layers(group)
        stride, stores, at = sum(sizes.values()), {}, 0
        for member in group.members:
            empty = self._store(len(member.kv_heads), member.head_size)
            stores[member.layer] = replace(empty, at=at, stride=stride, page_tokens=page_tokens)
            at += sizes[member.layer]
        return _Live(stores, dtype)

    def _layers(self, group: GroupSpec) -> dict[int, int]:
        """Bytes of each layer's part of a block."""
        return {m.layer: self._store(len(m.kv_heads), m.head_size).nbytes for m in group.members}

    def _store(self, kv_heads: int, head_size: int) -> BlockStore:
        channels = math.gcd(self.group, head_size)
        return BlockStore(
            0, 0, self.residual, self.residual, self.group, channels, kv_heads, head_size, self.bits
        )


class _Live:
    """See LiveCodec."""

    def __init__(self, stores: dict[int, BlockStore], dtype: torch.dtype) -> None:
        self._stores, self._dtype = stores, dtype

    def write(self, arena_PX: Tensor, layer: int, k_TGH: Tensor, v_TGH: Tensor, slots_T: Tensor) -> None:
        block_attention.write(arena_PX, self._stores[layer], k_TGH, v_TGH, slots_T)

    def read(self, arena_PX: Tensor, layer: int, pages_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
        k_LGH, v_LGH = block_attention.read(arena_PX, self._stores[layer], pages_B, length)
        return k_LGH.to(self._dtype), v_LGH.to(self._dtype)

    def attend(self, arena_PX: Tensor, layer: int, queries: Queries, reads: Reads) -> State:
        return block_attention.attend(queries, arena_PX, self._stores[layer], reads)
