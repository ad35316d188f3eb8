"""Keys and values as plain numbers: in the model's dtype, or in bfloat16.

Paper   https://arxiv.org/abs/2309.06180 (PagedAttention)
Idea    A page is [layer][key|value][kv head]; keys lie transposed, so that a register holds one dimension of sixteen
        tokens.
Trades  Nothing in the model's dtype: reads give back what was written. bfloat16 takes half the memory and bandwidth of
        float32, and rounds keys and values once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.kernels import paged_attention
from headrace.kernels.attention import Queries, State
from headrace.kernels.paged_attention import PageStore
from headrace.kv.groups import GroupSpec
from headrace.slots import Card
from headrace.types import Reads

ALIGN = 64
"""Pages start on cache lines."""


@dataclass(frozen=True, kw_only=True)
class Plain:
    """In the model's dtype."""

    card: ClassVar[Card] = Card(
        slot="kv-codec", exact="bits", paper="https://arxiv.org/abs/2309.06180", recordable=True
    )

    def page_bytes(self, group: GroupSpec, tokens: int, dtype: torch.dtype) -> int:
        size = self._stored(dtype).itemsize
        return -(-group.elements_per_token * tokens * size // ALIGN) * ALIGN

    def start(self, group: GroupSpec, page_tokens: int, dtype: torch.dtype) -> LivePlain:
        return LivePlain(group, page_tokens, dtype, self._stored(dtype))

    def _stored(self, dtype: torch.dtype) -> torch.dtype:
        return dtype


@dataclass(frozen=True, kw_only=True)
class Bf16(Plain):
    """In bfloat16, whatever the model's dtype is."""

    card: ClassVar[Card] = Card(
        slot="kv-codec", exact="lossy", paper="https://arxiv.org/abs/2309.06180", recordable=True
    )

    def _stored(self, dtype: torch.dtype) -> torch.dtype:
        return torch.bfloat16


class LivePlain:
    """Knows where each layer's keys and values lie in a page."""

    def __init__(self, group: GroupSpec, page_tokens: int, dtype: torch.dtype, stored: torch.dtype) -> None:
        self._dtype = dtype
        self._stores: dict[int, PageStore] = {}
        at = 0
        for member in group.members:
            heads, size = len(member.kv_heads), member.head_size
            nbytes = page_tokens * heads * size * stored.itemsize
            self._stores[member.layer] = PageStore(at, at + nbytes, page_tokens, heads, size, stored)
            at += 2 * nbytes

    def write(self, arena_PX: Tensor, layer: int, k_TGH: Tensor, v_TGH: Tensor, slots_T: Tensor) -> None:
        paged_attention.write(arena_PX, self._stores[layer], k_TGH, v_TGH, slots_T)

    def read(self, arena_PX: Tensor, layer: int, pages_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
        k_LGH, v_LGH = paged_attention.read(arena_PX, self._stores[layer], pages_B, length)
        return k_LGH.to(self._dtype), v_LGH.to(self._dtype)

    def attend(self, arena_PX: Tensor, layer: int, queries: Queries, reads: Reads) -> State:
        return paged_attention.attend(queries, arena_PX, self._stores[layer], reads)
