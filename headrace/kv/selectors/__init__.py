"""Slot `kv-selector`: which stored pages a query reads. One is a frozen dataclass with what Selector lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from headrace.kv.groups import GroupSpec
from headrace.slots import Card, Slot

if TYPE_CHECKING:
    from torch import Tensor

    from headrace.kernels.attention import Queries
    from headrace.kv.codecs import LiveCodec
    from headrace.kv.selection import Selecting


class LiveSelector(Protocol):
    """A selector at work on one cache group. What it knows of a page lies in the page, behind keys and values."""

    def index(self, arena_PX: Tensor, layer: int, pages_P: Tensor, page_tokens: int) -> None:
        """Sums up pages that have become whole; one of refused drafts comes again."""

    def select(self, arena_PX: Tensor, layer: int, queries: Queries, selecting: Selecting) -> Tensor | None:
        """bool [G, C, B]: which pages of its table each set of rows reads, for each kv head; always those of its own
        positions. It is a matter of the set's sequence, not of what else is in the batch. None: the layer reads all."""


class Selector(Protocol):
    """Chooses pages for some positions of a sequence, in groups without a window. The next query may read others."""

    card: ClassVar[Card]
    answers: ClassVar[bool]
    """Whether it is for the positions after the prompt; else for the prompt's."""

    @property
    def rows(self) -> int:
        """Positions that read the same pages; such a set begins at a multiple of it."""

    @property
    def spared(self) -> int:
        """Last positions of a prompt that read everything."""

    def kept(self, pages: int, page_tokens: int) -> int:
        """Pages that a set reads which could read so many: all, and select is not asked; or at least these."""

    def page_bytes(self, group: GroupSpec) -> int:
        """What it adds to a page."""

    def start(self, group: GroupSpec, at: int, codec: LiveCodec) -> LiveSelector | None:
        """At work on one group, from byte `at` of its pages on. None: it never selects."""


SLOT = Slot(
    name="kv-selector",
    asks="which stored pages a query reads",
    index={
        "everything": "headrace.kv.selectors.everything:Everything",
        "landmarks": "headrace.kv.selectors.landmarks:Landmarks",
        "squeezed": "headrace.kv.selectors.squeezed:Squeezed",
        "vslash": "headrace.kv.selectors.vslash:VSlash",
    },
    default="everything",
)
