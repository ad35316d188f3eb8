"""What of a model's cache groups is stored in pages, and how large these are."""

from __future__ import annotations

import torch

from headrace.kv import paged, summary
from headrace.kv.codecs import Codec
from headrace.kv.groups import ALIGN, GroupSpec
from headrace.kv.keepers import Keeper
from headrace.kv.selectors import Selector


def stored_groups(groups: tuple[GroupSpec, ...], keeper: Keeper, codec: Codec) -> tuple[GroupSpec, ...]:
    """The groups that have block tables: within the keeper's limits, and with a codec that takes whole blocks split in
    two, the blocks first; then the records of those that have a summary."""
    found: list[GroupSpec] = []
    for group in map(keeper.limit, groups):
        found += [group] if codec.block_tokens is None else group.split(codec.block_tokens)
        if group.summary is not None:
            summary.check_window(group, codec.block_tokens)
            found.append(group.records())
            found += [group.asked()] if group.summary.asks else []
    return tuple(found)


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
    known = selector.page_bytes(group) if selector is not None and group.window is None else 0
    return codec.page_bytes(group, tokens, dtype) + -(-known // ALIGN) * ALIGN
