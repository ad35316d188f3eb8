"""Slot `kv-tier`: where pages lie that memory has no room for. Behind the pool: they leave it, and are brought back
instead of computed again. Or under it: the pool itself lies there, and what a step touches is fetched. One is a frozen
dataclass with what Tier lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from headrace.slots import Card, Slot

if TYPE_CHECKING:
    from torch import Tensor

    from headrace.kv.residence import Backing
    from headrace.kv.stored import Cut


class LiveTier(Protocol):
    """A tier behind the pool at work: numbered slots of a page each. One thread calls it; pages are uint8 [X]."""

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
    """A place for pages. Where it may fail it loses pages, and never changes them."""

    card: ClassVar[Card]

    @property
    def memory_bytes(self) -> int:
        """Main memory that it takes at most; of one under the pool, with the pool's own."""

    @property
    def behind(self) -> Behind | None:
        """Itself, if it takes pages that leave the pool."""

    @property
    def under(self) -> Under | None:
        """Itself, if the pool lies there."""


class Behind(Protocol):
    """A tier behind the pool, with a bound in bytes."""

    @property
    def num_bytes(self) -> int:
        """What it holds at most."""

    def start(self, slots: int, page_bytes: int) -> LiveTier:
        """At work. Raises ConfigError if there is no room for so many pages."""


class Under(Protocol):
    """A tier under the pool: kv_bytes is the room there."""

    unit: ClassVar[int]
    """What it moves are whole multiples of so many bytes, at multiples of them: see GroupSpec."""

    @property
    def memory_bytes(self) -> int:
        """What of the pool may be in main memory."""

    def back(self, arena_PX: Tensor, cut: Cut) -> Backing:
        """At work on a pool at these addresses. Raises ConfigError if there is no room for it."""


SLOT = Slot(
    name="kv-tier",
    asks="where pages lie that memory has no room for",
    index={
        "host": "headrace.kv.tiers.host:Host",
        "disk": "headrace.kv.tiers.disk:Disk",
        "offload": "headrace.kv.tiers.offload:Offload",
    },
    default="",
)
