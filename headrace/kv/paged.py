"""Keys and values where the kernel paged_attention reads them: what codecs with native attention have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from headrace.kernels import paged_attention
from headrace.kernels.attention import Queries, State
from headrace.kernels.paged_attention import PageStore
from headrace.kv.groups import ALIGN, GroupSpec
from headrace.types import Reads


def page_bytes(group: GroupSpec, tokens: int, stored: torch.dtype) -> int:
    """Bytes of a page whose numbers are `stored`."""
    stores = _stores(group, tokens, stored).values()
    used = sum(store.kv_heads * (store.head_stride or 2 * store.head_bytes) for store in stores)
    return -(-used // ALIGN) * ALIGN


class Paged:
    """A live codec that knows where each layer's keys and values lie in a page, and leaves the rest to the kernel."""

    def __init__(self, group: GroupSpec, page_tokens: int, dtype: torch.dtype, stored: torch.dtype) -> None:
        """dtype: the model's; stored: see PageStore."""
        self._dtype = dtype
        self._stores = _stores(group, page_tokens, stored)
        self._by_head: dict[int, list[PageStore]] = {}

    def strips(self, layer: int) -> list[slice]:
        """Where each kv head lies in a page, of a group with a unit."""
        store = self._stores[layer]
        starts = [store.k_at + store.head_at(head) for head in range(store.kv_heads)]
        return [slice(at, at + store.head_stride) for at in starts]

    def write(self, arena_PX: Tensor, layer: int, k_TGH: Tensor, v_TGH: Tensor, slots_T: Tensor) -> None:
        paged_attention.write(arena_PX, self._stores[layer], k_TGH, v_TGH, slots_T)

    def read(self, arena_PX: Tensor, layer: int, pages_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
        k_LGH, v_LGH = paged_attention.read(arena_PX, self._stores[layer], pages_B, length)
        return k_LGH.to(self._dtype), v_LGH.to(self._dtype)

    def attend(self, arena_PX: Tensor, layer: int, queries: Queries, reads: Reads) -> State:
        return paged_attention.attend(queries, arena_PX, self._stores[layer], reads)

    def attend_heads(self, arena_PX: Tensor, layer: int, queries: Queries, reads: Sequence[Reads]) -> Tensor:
        """The same, [T, N, H], where each kv head reads pages of its own."""
        q_TNH, heads = queries.q_TNH, self._heads(layer)
        each = q_TNH.shape[1] // len(heads)
        outs = [
            paged_attention.attend(queries._replace(q_TNH=q_TMH), arena_PX, head, own).out_TNH
            for q_TMH, head, own in zip(q_TNH.split(each, 1), heads, reads, strict=True)
        ]
        return torch.cat(outs, 1)

    def _heads(self, layer: int) -> list[PageStore]:
        """Each kv head's part, as if the layer had no other."""
        if layer not in self._by_head:
            store = self._stores[layer]
            at = map(store.head_at, range(store.kv_heads))
            self._by_head[layer] = [
                replace(store, k_at=store.k_at + own, v_at=store.v_at + own, kv_heads=1) for own in at
            ]
        return self._by_head[layer]


def _stores(group: GroupSpec, page_tokens: int, stored: torch.dtype) -> dict[int, PageStore]:
    """Layer -> its part of a page, one after the other."""
    stores, at = {}, 0
    for member in group.members:
        store = PageStore(at, at, page_tokens, len(member.kv_heads), member.head_size, stored)
        if group.unit:
            stride = -(-2 * store.head_bytes // group.unit) * group.unit
            stores[member.layer] = replace(store, v_at=at + store.head_bytes, head_stride=stride)
            at += store.kv_heads * stride
        else:
            stores[member.layer] = replace(store, v_at=at + store.nbytes)
            at += 2 * store.nbytes
    return stores
