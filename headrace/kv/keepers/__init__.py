"""Slot `kv-keeper`: which stored entries survive.

Add one: a file here with a frozen dataclass that has `card` and `kept`, and a line in the index.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from headrace.kv.groups import GroupSpec
from headrace.slots import Card, Slot

Interval = tuple[int, int]
"""Positions [start, stop)."""


class Keeper(Protocol):
    """Decides which positions later queries may still read. What it drops is gone: pages are freed, not masked."""

    card: ClassVar[Card]

    def kept(self, group: GroupSpec, computed: int) -> tuple[Interval, ...]:
        """Ascending, disjoint intervals of [0, computed) to keep, given that those positions are computed. Pure.

        Called after each step of a sequence, never during one. Pages that lie wholly outside are freed; a page that
        is partly inside stays, and is read whole. The newest position must be kept. A position once dropped may not
        be asked for again. The group's own window is applied by the cache, beside this.
        """
        ...


SLOT = Slot(
    name="kv-keeper",
    asks="which stored entries survive",
    index={"everything": "headrace.kv.keepers.everything:Everything"},
    default="everything",
)
