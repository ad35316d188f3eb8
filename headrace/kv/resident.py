"""A live codec over a pool that lies on a tier: what it is about to touch is in memory first (kv/residence.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from headrace.kernels.attention import Queries, State
from headrace.kv.codecs import LiveCodec
from headrace.kv.paged import Paged
from headrace.kv.residence import Parts, Residence
from headrace.types import Reads


class Resident:
    """One group's. See LiveCodec and Paged."""

    def __init__(self, pages: LiveCodec, residence: Residence, group: int, page_tokens: int) -> None:
        assert isinstance(pages, Paged), "cards refuse others"
        self._pages, self._residence, self._page_tokens = pages, residence, page_tokens
        self._strips = {
            layer: strips for (own, layer), strips in residence.cut.layers.items() if own == group
        }
        layers = list(self._strips)
        self._next = dict(zip(layers, layers[1:] + layers[:1], strict=True))
        """Layer -> the one that runs after it."""

    def write(self, arena_PX: Tensor, layer: int, k_TGH: Tensor, v_TGH: Tensor, slots_T: Tensor) -> None:
        if not len(slots_T):
            return
        pages_T, inside_T = np.divmod(slots_T.numpy(), self._page_tokens)
        self._residence.need(layer, self._parts(layer, np.unique(pages_T)), write=True)
        self._pages.write(arena_PX, layer, k_TGH, v_TGH, slots_T)
        whole_P = np.unique(pages_T[inside_T == self._page_tokens - 1])
        self._residence.whole(self._parts(layer, whole_P))

    def read(self, arena_PX: Tensor, layer: int, pages_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
        pages_B = pages_B[: -(-length // self._page_tokens)]
        self._residence.need(layer, self._parts(layer, pages_B.numpy()))
        return self._pages.read(arena_PX, layer, pages_B, length)

    def attend(self, arena_PX: Tensor, layer: int, queries: Queries, reads: Reads) -> State:
        self._residence.need(layer, self._parts(layer, np.unique(reads.pages_B.numpy())))
        state = self._pages.attend(arena_PX, layer, queries, reads)
        self._residence.ahead(self._strips[self._next[layer]])
        return state

    def attend_heads(self, arena_PX: Tensor, layer: int, queries: Queries, reads: Sequence[Reads]) -> Tensor:
        count, strips = self._residence.pages, self._strips[layer]
        own = [strip * count + each.pages_B.numpy() for strip, each in zip(strips, reads, strict=True)]
        self._residence.need(layer, np.concatenate(own))
        out_TNH = self._pages.attend_heads(arena_PX, layer, queries, reads)
        self._residence.ahead(self._strips[self._next[layer]])
        return out_TNH

    def _parts(self, layer: int, pages_B: Parts) -> Parts:
        """Of these pages, every kv head's."""
        strips = self._strips[layer]
        firsts_G1 = np.arange(strips.start, strips.stop)[:, None] * self._residence.pages
        parts_N: Parts = (firsts_G1 + pages_B).ravel()
        return parts_N
