"""What of a model's cache groups is stored in pages, how large these are, and how they are cut."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.kv import paged, summary
from headrace.kv.codecs import Codec
from headrace.kv.groups import ALIGN, GroupSpec, PageSizes, size_pages
from headrace.kv.keepers import Keeper
from headrace.kv.selectors import Selector

if TYPE_CHECKING:
    from headrace.kv.residence import Under


def stored_groups(
    groups: tuple[GroupSpec, ...], keeper: Keeper, codec: Codec, tier: Under | None = None
) -> tuple[GroupSpec, ...]:
    """The groups that have block tables: within the keeper's limits, and with a codec that takes whole blocks split in
    two, the blocks first; then the records of those that have a summary. tier: where the pool lies."""
    found: list[GroupSpec] = []
    for group in map(keeper.limit, groups):
        group = group if tier is None else replace(group, unit=tier.unit)
        found += [group] if codec.block_tokens is None else group.split(codec.block_tokens)
        if group.summary is not None:
            summary.check_window(group, codec.block_tokens)
            found.append(group.records())
            found += [group.asked()] if group.summary.asks else []
    return tuple(found)


def page_sizes(
    groups: tuple[GroupSpec, ...],
    page_tokens: int,
    codec: Codec,
    dtype: torch.dtype,
    selector: Selector | None = None,
) -> PageSizes:
    """Of stored_groups. How many tokens a page holds does not depend on their unit. Raises ConfigError."""
    close = [replace(group, unit=0) for group in groups]
    sizes = size_pages(close, page_tokens, lambda group, n: page_bytes_of(codec, group, n, dtype, selector))
    pairs = zip(groups, sizes.tokens, strict=True)
    return replace(
        sizes, page_bytes=max(page_bytes_of(codec, group, n, dtype, selector) for group, n in pairs)
    )


def page_bytes_of(
    codec: Codec, group: GroupSpec, tokens: int, dtype: torch.dtype, selector: Selector | None = None
) -> int:
    """Bytes of a page that holds this many tokens of a group of stored_groups: what a selector knows of it comes
    last."""
    if group.holds == "summary":
        return summary.page_bytes(group, group.block // tokens, dtype)
    if group.holds == "queries":
        return summary.AskedQueries(group, tokens, dtype).page_bytes
    if group.holds == "rest":
        return paged.page_bytes(group, tokens, codec.rest or dtype)
    return codec.page_bytes(group, tokens, dtype) + _known(group, selector)


def _known(group: GroupSpec, selector: Selector | None) -> int:
    """What a selector keeps of a page."""
    known = selector.page_bytes(group) if selector is not None and group.window is None else 0
    align = group.unit or ALIGN
    return -(-known // align) * align


class Strip(NamedTuple):
    """One kv head of one layer, in every page of its group."""

    group: int
    layer: int
    place: slice
    """Of a page."""


@dataclass(frozen=True)
class Cut:
    """Pages of groups with a unit: strips, and behind them what a selector knows."""

    page_bytes: int
    strips: tuple[Strip, ...]
    """Group after group, layer after layer."""
    known: tuple[slice, ...]
    """Per group."""

    @cached_property
    def layers(self) -> dict[tuple[int, int], range]:
        """(group, layer) -> its strips."""
        counts = Counter((strip.group, strip.layer) for strip in self.strips)
        found, first = {}, 0
        for key, count in counts.items():
            found[key] = range(first, first + count)
            first += count
        return found

    @cached_property
    def starts_S(self) -> NDArray[np.int64]:
        """Where each strip begins in a page."""
        return np.array([strip.place.start for strip in self.strips])

    @cached_property
    def sizes_S(self) -> NDArray[np.int64]:
        """Bytes of each strip."""
        return np.array([strip.place.stop - strip.place.start for strip in self.strips])

    @property
    def stays(self) -> int:
        """Bytes of a page that are always in memory."""
        return max(known.stop - known.start for known in self.known)

    @property
    def least(self) -> int:
        """Bytes of memory per page with which a layer can always attend to every page: for what stays, and the largest
        layer. With more, others need not make way for it."""
        layers = self.layers.values()
        return self.stays + max(int(self.sizes_S[own.start : own.stop].sum()) for own in layers)


def cut(
    groups: tuple[GroupSpec, ...],
    sizes: PageSizes,
    codec: Codec,
    dtype: torch.dtype,
    selector: Selector | None = None,
) -> Cut:
    """Of stored_groups with a unit, and a codec that takes tokens as they come."""
    strips: list[Strip] = []
    known: list[slice] = []
    for index, (group, tokens) in enumerate(zip(groups, sizes.tokens, strict=True)):
        live = codec.start(group, tokens, dtype)
        assert isinstance(live, paged.Paged) and group.holds == "all", "cards refuse others"
        strips += [Strip(index, m.layer, at) for m in group.members for at in live.strips(m.layer)]
        end = codec.page_bytes(group, tokens, dtype)
        known.append(slice(end, end + _known(group, selector)))
    return Cut(sizes.page_bytes, tuple(strips), tuple(known))
