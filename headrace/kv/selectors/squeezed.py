"""Reads the pages that would get most attention if each of their keys were the mean of those like it.

Paper   https://arxiv.org/abs/2411.09688 (Squeezed Attention)
Idea    Keys of one direction are attended to alike. Those of a page are clustered by their directions, k-means, when it
        is whole; its share of a query's attention is estimated from the clusters' means and sizes, and the pages
        with the largest estimates are read.
Trades  Reads of a decoding step fall to `share`, and to the means, by which pages grow: a bfloat16 vector and its size
        per cluster and kv head. An estimate, where landmarks have a bound: a key unlike its cluster is underestimated.
        Steps of a choice are not recorded, which costs more than it saves until a context has some thousands of tokens.
Prompts Positions of the prompt read everything, so how it was cut changes nothing. What is generated comes of a choice,
        and so the prefix cache does not take it for part of another request's prompt.
Differs The paper clusters a fixed context as a whole, beforehand, and gathers single tokens of all clusters above one
        threshold. Here clusters end with their page, so that whoever shares a page shares them, and text that grows has
        them too; what is read is whole pages, an equal number for every head. Two levels of clusters are one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.kernels import page_dots
from headrace.kernels.attention import Queries
from headrace.kernels.page_dots import LANES, PageVectors
from headrace.kv.codecs import LiveCodec
from headrace.kv.groups import GroupSpec
from headrace.kv.selection import NO_CHOICE, Selecting, choose, kept_pages, keys_of, stack_vectors
from headrace.slots import Card

ROUNDS = 8
"""Of k-means: sixteen keys have long settled."""


@dataclass(frozen=True, kw_only=True)
class Squeezed:
    """Clusters of keys, per page and kv head."""

    card: ClassVar[Card] = Card(
        slot="kv-selector",
        exact="lossy",
        paper="https://arxiv.org/abs/2411.09688",
        breaks=NO_CHOICE,
    )
    answers: ClassVar[bool] = True
    rows: ClassVar[int] = 1
    spared: ClassVar[int] = 0
    share: float = 0.25
    """Of the pages so far that are read."""
    clusters: int = 2
    """Of a page's keys."""
    least: int = 512
    """Tokens that are read however short the context is."""
    sink: int = 16
    """First tokens that are always read."""
    recent: int = 64
    """Last tokens that are always read."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not 1 <= self.clusters <= 16:
            raise ValueError(f"share={self.share} must be from 0 to 1, clusters={self.clusters} from 1 to 16")
        if min(self.least, self.sink) < 0 or self.recent < 1:
            raise ValueError("least and sink must not be below 0, and recent at least 1")

    def kept(self, pages: int, page_tokens: int) -> int:
        return kept_pages(pages, page_tokens, self.share, self.least, self.sink, self.recent)

    def page_bytes(self, group: GroupSpec) -> int:
        return sum(store.nbytes for store in self._stores(group, 0).values())

    def start(self, group: GroupSpec, at: int, codec: LiveCodec) -> _Live:
        return _Live(self, self._stores(group, at), codec)

    def _stores(self, group: GroupSpec, at: int) -> dict[int, PageVectors]:
        """Per cluster its mean, and the logarithm of its size, which a query's 1 adds."""
        return stack_vectors(group, at, self.clusters, lambda head_size: head_size + LANES)


class _Live:
    """See LiveSelector."""

    def __init__(self, options: Squeezed, stores: dict[int, PageVectors], codec: LiveCodec) -> None:
        self._options, self._stores, self._codec = options, stores, codec

    def index(self, arena_PX: Tensor, layer: int, pages_P: Tensor, page_tokens: int) -> None:
        k_PLGH = keys_of(self._codec, arena_PX, layer, pages_P, page_tokens)
        means_PGCH, sizes_PGC = cluster(k_PLGH.transpose(1, 2), self._options.clusters)
        vectors_PGCX = means_PGCH.new_zeros(*sizes_PGC.shape, self._stores[layer].size)
        vectors_PGCX[..., : means_PGCH.shape[-1]] = means_PGCH
        vectors_PGCX[..., -LANES] = sizes_PGC.log()
        self._stores[layer].views(arena_PX)[pages_P] = vectors_PGCX.to(torch.bfloat16)

    def select(self, arena_PX: Tensor, layer: int, queries: Queries, selecting: Selecting) -> Tensor:
        store, own = self._stores[layer], selecting.of(queries)
        q_RNX = torch.nn.functional.pad(own.q_TNH * own.scale, (0, LANES))
        q_RNX[..., -LANES] = 1
        dots_RNBC = page_dots.dots(q_RNX, arena_PX, store, *selecting.lookup)
        scores_RNB = dots_RNBC[..., 0]
        for c in range(1, store.count):
            scores_RNB = torch.logaddexp(scores_RNB, dots_RNBC[..., c])
        return choose(scores_RNB, store.kv_heads, selecting, self._options.sink, self._options.recent)


def cluster(k_PGLH: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Means [P, G, C, H] and sizes [P, G, C] of each page's keys, clustered by direction. The same for a page whatever
    others there are: sums run over its own numbers, and nothing is random."""
    wide = torch.promote_types(k_PGLH.dtype, torch.float32)
    k_PGLH = k_PGLH.to(wide)
    unit_PGLH = torch.nn.functional.normalize(k_PGLH, dim=-1)
    centres_PGCH = _spread(unit_PGLH, count)
    for _ in range(ROUNDS):
        member_PGCL = _nearest(unit_PGLH, centres_PGCH)
        sums_PGCH = (member_PGCL[..., None] * unit_PGLH[:, :, None]).sum(3)
        empty_PGC1 = ~member_PGCL.any(-1, keepdim=True)
        centres_PGCH = torch.where(empty_PGC1, centres_PGCH, torch.nn.functional.normalize(sums_PGCH, dim=-1))
    member_PGCL = _nearest(unit_PGLH, centres_PGCH)
    sizes_PGC = member_PGCL.sum(-1).to(wide)
    sums_PGCH = (member_PGCL[..., None] * k_PGLH[:, :, None]).sum(3)
    return sums_PGCH / sizes_PGC.clamp_min(1)[..., None], sizes_PGC


def _spread(unit_PGLH: Tensor, count: int) -> Tensor:
    """The first key, then again and again the one that is least like those taken: [P, G, C, H]."""
    taken = [unit_PGLH[:, :, 0]]
    like_PGL = (unit_PGLH * taken[0][:, :, None]).sum(-1)
    for _ in range(1, count):
        least_PG = like_PGL.argmin(-1)
        taken.append(
            unit_PGLH.gather(2, least_PG[..., None, None].expand(-1, -1, 1, unit_PGLH.shape[-1]))[:, :, 0]
        )
        like_PGL = torch.maximum(like_PGL, (unit_PGLH * taken[-1][:, :, None]).sum(-1))
    return torch.stack(taken, 2)


def _nearest(unit_PGLH: Tensor, centres_PGCH: Tensor) -> Tensor:
    """Which keys are in each cluster: bool [P, G, C, L]."""
    like_PGCL = (centres_PGCH[:, :, :, None] * unit_PGLH[:, :, None]).sum(-1)
    own_PGL = like_PGCL.argmax(2)
    return own_PGL[:, :, None] == torch.arange(centres_PGCH.shape[2], device=own_PGL.device)[:, None]
