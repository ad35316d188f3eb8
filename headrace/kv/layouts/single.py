"""One table for the whole model: every layer keeps every page until the sequence ends.

Paper   https://arxiv.org/abs/2309.06180 (PagedAttention)
Idea    The plain block table. Sliding-window layers mask what they may not see but keep it stored.
Trades  No memory is saved on sliding-window models; it is the baseline against which `windows` is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headrace.architecture import Architecture
from headrace.kv.groups import GroupSpec, Member
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Single:
    """All layers in one group without a window."""

    card: ClassVar[Card] = Card(
        slot="kv-layout", exact="bits", paper="https://arxiv.org/abs/2309.06180", recordable=True
    )

    def groups(self, architecture: Architecture) -> tuple[GroupSpec, ...]:
        members = tuple(
            Member(
                layer,
                tuple(range(block.attention.kv_heads)),
                block.attention.head_size,
                block.attention.heads // block.attention.kv_heads,
            )
            for layer, block in enumerate(architecture.blocks)
        )
        return (GroupSpec("all", members),)
