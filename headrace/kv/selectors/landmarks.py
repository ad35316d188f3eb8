"""Reads the pages whose keys could score highest, by the least and the greatest number of each channel.

Paper   https://arxiv.org/abs/2406.10774 (Quest)
Idea    A page's keys lie in a box: a query's product with its best corner is more than with any of them. Two vectors
        for the page's tokens are read, then the pages with the largest bounds: as many as a share of the context is.
Trades  Reads of a decoding step fall to `share`, and to the boxes, by which pages grow: two bfloat16 vectors per kv
        head. What lies in no page that is read, this query does not see; the next one looks again. Steps of a
        choice are not recorded, which costs more than it saves until a context has some thousands of tokens.
Prompts Positions of the prompt read everything, so how it was cut changes nothing. What is generated comes of a choice,
        and so the prefix cache does not take it for part of another request's prompt.
Differs Query heads that share a kv head read the same pages: those that are best for one of them, each score counted
        from that head's best. Boxes are rounded outwards. The unit is a group's page: of more tokens than page_tokens
        where the group's entries are smaller than another's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.kernels import page_dots
from headrace.kernels.attention import Queries
from headrace.kernels.page_dots import PageVectors
from headrace.kv.codecs import LiveCodec
from headrace.kv.groups import GroupSpec
from headrace.kv.selection import NO_CHOICE, Selecting, choose, kept_pages, keys_of, stack_vectors
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """A box per page and kv head."""

    card: ClassVar[Card] = Card(
        slot="kv-selector",
        exact="lossy",
        paper="https://arxiv.org/abs/2406.10774",
        breaks=NO_CHOICE,
    )
    answers: ClassVar[bool] = True
    rows: ClassVar[int] = 1
    spared: ClassVar[int] = 0
    share: float = 0.25
    """Of the pages so far that are read."""
    least: int = 512
    """Tokens that are read however short the context is."""
    sink: int = 16
    """First tokens that are always read."""
    recent: int = 64
    """Last tokens that are always read."""
    dense: int = 2
    """First layers that read everything: they look everywhere."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} must be from 0 to 1")
        if min(self.least, self.sink, self.dense) < 0 or self.recent < 1:
            raise ValueError("least, sink and dense must not be below 0, and recent at least 1")

    def kept(self, pages: int, page_tokens: int) -> int:
        return kept_pages(pages, page_tokens, self.share, self.least, self.sink, self.recent)

    def page_bytes(self, group: GroupSpec) -> int:
        return sum(store.nbytes for store in _stores(group, 0).values())

    def start(self, group: GroupSpec, at: int, codec: LiveCodec) -> _Live:
        return _Live(self, _stores(group, at), codec)


def _stores(group: GroupSpec, at: int) -> dict[int, PageVectors]:
    """Per layer and kv head one vector: the greatest numbers, then the least."""
    return stack_vectors(group, at, 1, lambda head_size: 2 * head_size)


class _Live:
    """See LiveSelector."""

    def __init__(self, options: Landmarks, stores: dict[int, PageVectors], codec: LiveCodec) -> None:
        self._options, self._stores, self._codec = options, stores, codec

    def index(self, arena_PX: Tensor, layer: int, pages_P: Tensor, page_tokens: int) -> None:
        k_PLGH = keys_of(self._codec, arena_PX, layer, pages_P, page_tokens)
        box_PGX = torch.cat((upwards(k_PLGH.amax(1)), -upwards(-k_PLGH.amin(1))), -1)
        self._stores[layer].views(arena_PX)[pages_P] = box_PGX[:, :, None]

    def select(self, arena_PX: Tensor, layer: int, queries: Queries, selecting: Selecting) -> Tensor | None:
        if layer < self._options.dense:
            return None
        q_RNH = selecting.of(queries).q_TNH * queries.scale
        corners_RNX = torch.cat((q_RNH.clamp_min(0), q_RNH.clamp_max(0)), -1)
        scores_RNBC = page_dots.dots(corners_RNX, arena_PX, self._stores[layer], *selecting.lookup)
        return choose(
            scores_RNBC[..., 0],
            self._stores[layer].kv_heads,
            selecting,
            self._options.sink,
            self._options.recent,
        )


def upwards(x: Tensor) -> Tensor:
    """The least bfloat16 number that is not below x."""
    near = x.to(torch.bfloat16)
    return torch.where(near.to(x.dtype) < x, near.nextafter(torch.full_like(near, torch.inf)), near)
