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

from headrace.kv.groups import GroupSpec
from headrace.kv.paged import Paged, page_bytes
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Plain:
    """In the model's dtype."""

    card: ClassVar[Card] = Card(
        slot="kv-codec", exact="bits", paper="https://arxiv.org/abs/2309.06180", recordable=True
    )

    block_tokens: ClassVar[None] = None
    rest: ClassVar[None] = None
    rotated: ClassVar[bool] = True

    def page_bytes(self, group: GroupSpec, tokens: int, dtype: torch.dtype) -> int:
        return page_bytes(group, tokens, self._stored(dtype))

    def start(self, group: GroupSpec, page_tokens: int, dtype: torch.dtype) -> Paged:
        return Paged(group, page_tokens, dtype, self._stored(dtype))

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
