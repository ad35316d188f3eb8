"""Every query reads all that is stored and in its window.

Paper   none: plain attention
Idea    Nothing is chosen, so nothing is asked and nothing is kept beside a page.
Trades  A step's reads grow with the context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headrace.kv.codecs import LiveCodec
from headrace.kv.groups import GroupSpec
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Everything:
    """Selects nothing."""

    card: ClassVar[Card] = Card(
        slot="kv-selector", exact="bits", paper="none: plain attention", recordable=True
    )
    answers: ClassVar[bool] = False
    rows: ClassVar[int] = 1
    spared: ClassVar[int] = 0

    def kept(self, pages: int, page_tokens: int) -> int:
        return pages

    def page_bytes(self, group: GroupSpec) -> int:
        return 0

    def start(self, group: GroupSpec, at: int, codec: LiveCodec) -> None:
        return None
