"""Slot `kv-tier`: where pages go that the pool has no room for, to be brought back instead of computed again.
One is a frozen dataclass with what Tier lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from headrace.slots import Card, Slot

if TYPE_CHECKING:
    from torch import Tensor


class LiveTier(Protocol):
    """A tier at work: numbered slots of a page each. One thread calls it; pages are uint8 [page_bytes]."""

    takes: bool
    """Whether it takes pages: no longer once something went wrong."""
    written: int  # bytes so far
    read: int

    def put(self, slot: int, page_X: Tensor) -> None:
        """Keeps a copy; the page may change as soon as this returns. What the slot held before is gone."""

    def get(self, slots: Sequence[int], pages: Sequence[Tensor]) -> list[bool]:
        """Copies the slots into the pages; False where it could not, and the log says why, once."""

    def ahead(self, slots: Sequence[int]) -> None:
        """These will be asked for soon, in this order. Returns at once."""

    def close(self) -> None:
        """Gives everything back. Harmless when done twice."""


class Tier(Protocol):
    """A place for pages, with a bound in bytes. Where it may fail it loses pages, and never changes them."""

    card: ClassVar[Card]

    @property
    def num_bytes(self) -> int:
        """What it holds at most."""

    @property
    def memory_bytes(self) -> int:
        """Main memory that it takes at most."""

    def start(self, slots: int, page_bytes: int) -> LiveTier:
        """At work. Raises ConfigError if there is no room for so many pages."""


SLOT = Slot(
    name="kv-tier",
    asks="where pages go that the pool has no room for",
    index={
        "host": "headrace.kv.tiers.host:Host",
        "disk": "headrace.kv.tiers.disk:Disk",
    },
    default="",
)
