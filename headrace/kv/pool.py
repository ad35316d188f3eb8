"""Pages: one arena of equal-sized pages, who holds them, and the block tables of every sequence.

    page    free  --take-->  held by tables (count) and perhaps by the prefix tree (cached)  --drop-->  free
    free        count = 0, not cached       on the free list; poisoned with NaN when `poison` is set
    evictable   count = 0, cached           the tree may give it up
    held        count > 0                   count = how many tables list it; shared when count + cached > 1

    tables[seq][group] = [page of tokens [0, t), page of [t, 2t), ...]     t = page_tokens[group]
                         -1 where the page was freed (out of window, or evicted); what was freed never comes back
                         -2 where it lies on a tier, of a sequence that is just being admitted

Outside headrace/kv a page is an int and nobody sees a table.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.errors import OutOfPages, TierError
from headrace.kv.residence import Residence
from headrace.weight.memory import taker

FREED, AWAY = -1, -2
POISON = 0xFF  # NaN in every float format that we store


class PagePool:
    """Page numbers, reference counts and the bytes themselves."""

    def __init__(
        self,
        num_pages: int,
        page_bytes: int,
        device: torch.device,
        poison: bool = False,
        residence: Residence | None = None,
    ) -> None:
        """residence: of pages that lie on a tier; these are not poisoned."""
        self.page_bytes = page_bytes
        self.residence = residence
        self._poison = poison and residence is None
        # in huge pages on a CPU: each block of tokens lies elsewhere, and its first line waits for its page's address
        self.arena_PX: Tensor = (
            taker(device)(num_pages * page_bytes).view(num_pages, page_bytes)
            if residence is None
            else residence.arena_PX
        )
        if self._poison:
            self.arena_PX.fill_(POISON)
        self._free = list(range(num_pages - 1, -1, -1))
        self._counts = [0] * num_pages
        self._cached = [False] * num_pages
        self._evictable = 0

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_evictable(self) -> int:
        """Pages that only the prefix tree holds."""
        return self._evictable

    @property
    def lost(self) -> bool:
        """Whether some page cannot be read any more."""
        return self.residence is not None and bool(self.residence.lost)

    def take(self) -> int:
        """A free page, held once. Its bytes are undefined. Raises OutOfPages."""
        if not self._free:
            raise OutOfPages(f"all {len(self)} pages are in use")
        page = self._free.pop()
        self._counts[page] = 1
        return page

    def hold(self, page: int) -> None:
        """One more table lists this page, which is held or cached already."""
        assert self._counts[page] or self._cached[page], f"page {page} is free"
        if self._counts[page] == 0:
            self._evictable -= 1
        self._counts[page] += 1

    def drop(self, page: int) -> None:
        """One table no longer lists this page; the last one out frees it, unless the tree has it."""
        assert self._counts[page] > 0, f"page {page} is not held"
        self._counts[page] -= 1
        if self._counts[page] == 0:
            if self._cached[page]:
                self._evictable += 1
            else:
                self._release(page)

    def cache(self, page: int) -> None:
        """The prefix tree now lists this page, which a table holds."""
        assert self._counts[page] > 0 and not self._cached[page], f"page {page} cannot enter the tree"
        self._cached[page] = True

    def uncache(self, page: int) -> None:
        """The prefix tree no longer lists this page."""
        assert self._cached[page], f"page {page} is not in the tree"
        self._cached[page] = False
        if self._counts[page] == 0:
            self._evictable -= 1
            self._release(page)

    def is_shared(self, page: int) -> bool:
        """Whether anybody else would notice a write to this page."""
        return self._counts[page] + self._cached[page] > 1

    def is_cached(self, page: int) -> bool:
        return self._cached[page]

    def is_evictable(self, page: int) -> bool:
        return self._cached[page] and self._counts[page] == 0

    def count(self, page: int) -> int:
        """How many tables list this page."""
        return self._counts[page]

    def copy(self, source: int, target: int) -> None:
        """Of a page's bytes. Raises TierError, and lets go of the target, if they cannot be had."""
        if self.residence is None:
            self.arena_PX[target].copy_(self.arena_PX[source])
            return
        try:
            self.residence.copy(source, target)
        except TierError:
            self.drop(target)
            raise

    def check(self, tables: dict[int, list[list[int]]], cached: list[int]) -> None:
        """Every invariant of the picture above. `cached`: every page that the prefix tree lists."""
        counts = [0] * len(self)
        for table in tables.values():
            for pages in table:
                for page in pages:
                    if page != FREED:
                        counts[page] += 1
        assert counts == self._counts, "a page's count differs from the tables that list it"
        assert len(cached) == len(set(cached)), "the tree lists a page twice"
        assert set(cached) == {p for p in range(len(self)) if self._cached[p]}, (
            "the tree and the pool disagree"
        )
        free = {p for p in range(len(self)) if counts[p] == 0 and not self._cached[p]}
        assert free == set(self._free) and len(free) == len(self._free), "the free list is not the free pages"
        assert self._evictable == sum(counts[p] == 0 for p in cached), "the evictable count is off"
        if self.residence is not None:
            self.residence.check()
        if self._poison and free:
            sample = self.arena_PX[sorted(free)[:4], :8]
            assert bool((sample == POISON).all()), "a free page was written"

    def _release(self, page: int) -> None:
        if self._poison:
            self.arena_PX[page].fill_(POISON)
        if self.residence is not None:
            self.residence.drop(page)
        self._free.append(page)
