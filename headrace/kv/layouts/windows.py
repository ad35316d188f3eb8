"""One table per window size: layers with a sliding window free the pages that left it.

Paper   https://arxiv.org/abs/2503.18292 (Jenga, on heterogeneous layers); vLLM's hybrid allocator does the same
Idea    A sliding-window layer never reads further back than its window, so its pages can go as the window moves on,
        while full-attention layers keep theirs. Two lifetimes need two block tables.
Trades  Nothing: tokens are the same, bit for bit. A model with one kind of layer has one group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headrace.architecture import Architecture
from headrace.kv.groups import GroupSpec, Member
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Groups layers by attention window; full attention first."""

    card: ClassVar[Card] = Card(
        slot="kv-layout", exact="bits", paper="https://arxiv.org/abs/2503.18292", recordable=True
    )

    def groups(self, architecture: Architecture) -> tuple[GroupSpec, ...]:
        layers: dict[int | None, list[Member]] = {}
        for layer, block in enumerate(architecture.blocks):
            attention = block.attention
            window = attention.window
            if window is not None and window >= architecture.context:
                window = None  # it never slides
            member = Member(
                layer,
                tuple(range(attention.kv_heads)),
                attention.head_size,
                attention.heads // attention.kv_heads,
            )
            layers.setdefault(window, []).append(member)
        by_reach = sorted(layers.items(), key=lambda item: (item[0] is not None, item[0] or 0))
        return tuple(
            GroupSpec("full" if window is None else f"window{window}", tuple(members), window)
            for window, members in by_reach
        )
