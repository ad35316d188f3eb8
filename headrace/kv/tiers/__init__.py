"""Slot `kv-tier`: where pages lie that memory has no room for. Behind the pool: they leave it, and are brought back
instead of computed again. Or under it: the pool itself lies there, and what a step touches is fetched. One is a frozen
dataclass with what Tier lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from headrace.slots import Card, Slot

if TYPE_CHECKING:
    from headrace.kv.residence import Under
    from headrace.kv.shelf import Behind


class Tier(Protocol):
    """A place for pages. Where it may fail it loses pages, and never changes them."""

    card: ClassVar[Card]

    @property
    def memory_bytes(self) -> int:
        """Main memory that it takes at most; of one under the pool, with the pool's own."""

    @property
    def behind(self) -> Behind | None:
        """Itself, if it takes pages that leave the pool: see kv/shelf.py."""

    @property
    def under(self) -> Under | None:
        """Itself, if the pool lies there: see kv/residence.py."""


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
