"""Keys and values as they are, in the model's dtype.

Paper   https://arxiv.org/abs/2309.06180 (PagedAttention)
Idea    A page is [layer][key|value][token][kv head][head size]; a token's entry of one layer is one contiguous run.
Trades  Nothing: reads give back the bytes that were written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.kv.groups import GroupSpec
from headrace.slots import Card

ALIGN = 64
"""Pages start on cache lines."""


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Uncompressed pages."""

    card: ClassVar[Card] = Card(slot="kv-codec", exact="bits", paper="https://arxiv.org/abs/2309.06180")

    def page_bytes(self, group: GroupSpec, tokens: int, dtype: torch.dtype) -> int:
        return -(-group.elements_per_token * tokens * dtype.itemsize // ALIGN) * ALIGN

    def start(self, group: GroupSpec, page_tokens: int, dtype: torch.dtype) -> LivePlain:
        return LivePlain(group, page_tokens, dtype)


class LivePlain:
    """Views into the arena; offsets of each layer inside a page are computed once."""

    def __init__(self, group: GroupSpec, page_tokens: int, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._tokens = page_tokens
        self._regions: dict[int, tuple[int, int, int]] = {}  # layer -> first element, G, H
        element = 0
        for member in group.members:
            heads, size = len(member.kv_heads), member.head_size
            self._regions[member.layer] = (element, heads, size)
            element += 2 * page_tokens * heads * size

    def write(self, arena_PX: Tensor, layer: int, k_TGH: Tensor, v_TGH: Tensor, slots_T: Tensor) -> None:
        kv_P2BGH = self._view(arena_PX, layer)
        page_T, offset_T = slots_T // self._tokens, slots_T % self._tokens
        kv_P2BGH[page_T, 0, offset_T] = k_TGH
        kv_P2BGH[page_T, 1, offset_T] = v_TGH

    def read(self, arena_PX: Tensor, layer: int, pages_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
        kv_B2TGH = self._view(arena_PX, layer).index_select(0, pages_B)
        k_LGH = kv_B2TGH[:, 0].flatten(0, 1)[:length]
        v_LGH = kv_B2TGH[:, 1].flatten(0, 1)[:length]
        return k_LGH, v_LGH

    def _view(self, arena_PX: Tensor, layer: int) -> Tensor:
        element, heads, size = self._regions[layer]
        shape = (2, self._tokens, heads, size)
        start, count = element * self._dtype.itemsize, 2 * self._tokens * heads * size * self._dtype.itemsize
        return arena_PX[:, start : start + count].view(self._dtype).unflatten(1, shape)
