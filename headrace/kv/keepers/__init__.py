"""Slot `kv-keeper`: which stored entries survive.

Add one: a file here with a frozen dataclass that has `card` and `limit`, and a line in the index.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from headrace.kv.groups import GroupSpec
from headrace.slots import Card, Slot


class Keeper(Protocol):
    """Decides what later queries may still read. What it drops is gone: pages are freed, not masked."""

    card: ClassVar[Card]

    def limit(self, group: GroupSpec) -> GroupSpec:
        """The group with a window, and perhaps a sink beside it, no larger than its own. Pure. What leaves the window
        may be merged into a record that stays: GroupSpec.summary.

        A query's view is a matter of its position, so that it does not depend on how its prompt was cut: rows of one
        chunk see no more of each other than if they had come one by one.
        """
        ...


SLOT = Slot(
    name="kv-keeper",
    asks="which stored entries survive",
    index={
        "everything": "headrace.kv.keepers.everything:Everything",
        "streaming": "headrace.kv.keepers.streaming:Streaming",
        "d2o": "headrace.kv.keepers.d2o:D2O",
    },
    default="everything",
)
