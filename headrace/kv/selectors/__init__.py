"""Slot `kv-selector`: which of the stored pages a query reads. Nothing is dropped: the next query chooses anew.

Add one: a file here with a frozen dataclass that has what Selector lists, and a line in the index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from headrace.kv.groups import GroupSpec
from headrace.slots import Card, Slot

if TYPE_CHECKING:
    from torch import Tensor

    from headrace.kernels.attention import Queries
    from headrace.kv.selection import Selecting


class LiveSelector(Protocol):
    """A selector at work on one cache group. What it knows of a page lies in that page, behind the keys and values:
    shared, copied, moved and freed with it."""

    def index(self, arena_PX: Tensor, layer: int, pages_P: Tensor, k_PLGH: Tensor) -> None:
        """Sums up pages that have become whole, from the keys as they are read, [page, token, kv head, head size].
        A page of refused drafts comes again."""

    def select(self, arena_PX: Tensor, layer: int, queries: Queries, selecting: Selecting) -> Tensor | None:
        """bool [G, C, B]: which pages of its table each set of rows reads, for each kv head; never none. A set's are
        a matter of its own rows and pages, not of what else is in the batch. queries: those of the sets' rows. None:
        this layer reads everything."""


class Selector(Protocol):
    """Chooses pages for some of a sequence's positions; the others read everything. Groups with a window do, too."""

    card: ClassVar[Card]
    answers: ClassVar[bool]
    """Whether it is for the positions after the prompt; else, for the prompt's."""
    rows: int
    """Positions that read the same pages; a set begins at a multiple of it."""
    spared: int
    """Last positions of a prompt that read everything, where it is for the prompt's."""

    def kept(self, pages: int, page_tokens: int) -> int:
        """Pages that a set of rows reads at least if it could read so many. If all, nothing is asked."""

    def page_bytes(self, group: GroupSpec) -> int:
        """What it adds to a page."""

    def start(self, group: GroupSpec, at: int) -> LiveSelector | None:
        """The live selector of one group, whose part of a page begins at byte `at`. None: it never selects."""


SLOT = Slot(
    name="kv-selector",
    asks="which stored pages a query reads",
    index={
        "everything": "headrace.kv.selectors.everything:Everything",
        "landmarks": "headrace.kv.selectors.landmarks:Landmarks",
    },
    default="everything",
)
