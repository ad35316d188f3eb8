"""Where keys and values lie in a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_SCALE = torch.float32.itemsize


class Views(NamedTuple):
    """What is stored, as views of the arena."""

    keys_PGHT: Tensor
    values_PGTH: Tensor
    key_scales_PGT: Tensor | None
    """float32, one per token and kv head; None where numbers are stored as they are."""
    value_scales_PGT: Tensor | None


@dataclass(frozen=True)
class PageStore:
    """One layer's part of a page: the kv heads' keys from k_at on, their values from v_at on, one head after the other;
    or each head's `head_stride` bytes after the one before it.

    A head's keys are [H][page_tokens], its values [page_tokens][H]. int8 codes follow their scales, [page_tokens].
    """

    k_at: int
    """Bytes from the page's beginning."""
    v_at: int
    page_tokens: int
    kv_heads: int
    head_size: int
    dtype: torch.dtype
    """Of what is stored: a float dtype, or int8."""
    head_stride: int = 0
    """0: a head's keys end where the next one's begin."""

    @property
    def nbytes(self) -> int:
        """Of the keys, and of the values."""
        return self.kv_heads * self.head_bytes

    def head_at(self, head: int) -> int:
        """Where a head begins, after the first one."""
        return head * (self.head_stride or self.head_bytes)

    def views(self, arena_PX: Tensor) -> Views:
        """Views of the whole arena."""
        (keys_PGX, key_scales_PGT), (values_PGX, value_scales_PGT) = (
            self._part(arena_PX[:, at : at + self.head_at(self.kv_heads - 1) + self.head_bytes])
            for at in (self.k_at, self.v_at)
        )
        return Views(
            keys_PGX.unflatten(2, (self.head_size, self.page_tokens)),
            values_PGX.unflatten(2, (self.page_tokens, self.head_size)),
            key_scales_PGT,
            value_scales_PGT,
        )

    def _part(self, part_PX: Tensor) -> tuple[Tensor, Tensor | None]:
        """The numbers of every head, and their scales."""
        heads_PGX = part_PX.unfold(1, self.head_bytes, self.head_stride or self.head_bytes)
        scales, numbers = self._scale_bytes, self.page_tokens * self.head_size * self.dtype.itemsize
        numbers_PGX = heads_PGX[..., scales : scales + numbers].view(self.dtype)
        return numbers_PGX, heads_PGX[..., :scales].view(torch.float32) if scales else None

    @property
    def _scale_bytes(self) -> int:
        return self.page_tokens * _SCALE if self.dtype == torch.int8 else 0

    @property
    def head_bytes(self) -> int:
        """Of one head's keys, or values."""
        numbers = self.page_tokens * self.head_size * self.dtype.itemsize
        if self.dtype == torch.int8:  # so that the next head's scales are aligned
            numbers = -(-numbers // _SCALE) * _SCALE
        return self._scale_bytes + numbers
