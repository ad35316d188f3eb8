"""Where the vectors that sum up a page lie in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PageVectors:
    """One layer's part of a page: `count` vectors of each kv head, bfloat16, one after the other from `at` on."""

    at: int
    """Bytes from the page's beginning; even."""
    kv_heads: int
    count: int
    """Vectors of a kv head."""
    size: int
    """Numbers of a vector."""

    @property
    def nbytes(self) -> int:
        return self.kv_heads * self.count * self.size * torch.bfloat16.itemsize

    def views(self, arena_PX: Tensor) -> Tensor:
        """bfloat16 [P, G, C, X], a view of the whole arena."""
        part_PX = arena_PX[:, self.at : self.at + self.nbytes].view(torch.bfloat16)
        return part_PX.unflatten(1, (self.kv_heads, self.count, self.size))
