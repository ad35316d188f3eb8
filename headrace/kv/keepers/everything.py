"""Keeps every entry for as long as its sequence lives.

Paper   none: plain attention
Idea    Nothing is dropped, beyond what sliding-window layers can never read again.
Trades  Memory grows with the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headrace.kv.groups import GroupSpec
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Everything:
    """Drops nothing."""

    card: ClassVar[Card] = Card(
        slot="kv-keeper", exact="bits", paper="none: plain attention", recordable=True
    )

    def limit(self, group: GroupSpec) -> GroupSpec:
        return group
