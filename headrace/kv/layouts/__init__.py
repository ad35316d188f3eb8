"""Slot `kv-layout`: which (layer, kv head) pairs share a block table.

Add one: a file here with a frozen dataclass that has `card` and `groups`, and a line in the index.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from headrace.architecture import Architecture
from headrace.kv.groups import GroupSpec
from headrace.slots import Card, Slot


class Layout(Protocol):
    """Splits a model's keys and values into cache groups."""

    card: ClassVar[Card]

    def groups(self, architecture: Architecture) -> tuple[GroupSpec, ...]:
        """Every (layer, kv head) pair of the model, each in exactly one group. Pure.

        A group's window must be at least that of each of its layers (None is larger than any): pages that leave the
        group's window are freed, and a layer must never want to read them again. What leaves a window may be merged
        into a record that stays: GroupSpec.summary.
        """
        ...


SLOT = Slot(
    name="kv-layout",
    asks="which layers and heads share a block table",
    index={
        "windows": "headrace.kv.layouts.windows:Windows",
        "single": "headrace.kv.layouts.single:Single",
        "duo": "headrace.kv.layouts.duo:Duo",
        "razor": "headrace.kv.layouts.razor:Razor",
    },
    default="windows",
)
