"""Where keys and values lie in a page."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PageStore:
    """One layer's part of a page. At k_at: keys [G][H][page_tokens]; at v_at: values [G][page_tokens][H]."""

    k_at: int
    """Bytes from the page's beginning."""
    v_at: int
    page_tokens: int
    kv_heads: int
    head_size: int
    dtype: torch.dtype
    """Of what is stored."""

    @property
    def nbytes(self) -> int:
        """Of the keys, and of the values."""
        return self.page_tokens * self.kv_heads * self.head_size * self.dtype.itemsize

    def views(self, arena_PX: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [P, G, H, page_tokens] and values [P, G, page_tokens, H] as views of the arena."""
        shape = (self.kv_heads, self.head_size, self.page_tokens)
        parts = [arena_PX[:, at : at + self.nbytes].view(self.dtype) for at in (self.k_at, self.v_at)]
        assert math.prod(shape) == parts[0].shape[1]
        return parts[0].unflatten(1, shape), parts[1].unflatten(1, (shape[0], shape[2], shape[1]))
