"""Shelf: which granules of the prefix tree lie on a tier, and who of them gives way there.

    pool --demote--> tier       when the tree gives pages up that nobody holds
    tier --bring--> pool        when a sequence is admitted whose prefix lies there

A granule that came back stays on the tier as well until its room is needed: to give it up again costs nothing.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from headrace.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from headrace.kv.groups import PageSizes
    from headrace.kv.pool import PagePool
    from headrace.kv.prefix import Node

STALE = 16
"""Heap entries per node, most of them stale, beyond which a heap is made anew."""
NEEDS = (("prefix_cache", "the prefix cache is what finds a page again that has left the pool"),)
"""What every tier behind the pool needs: facts and why, for its card."""


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


class Behind(Protocol):
    """A tier behind the pool, with a bound in bytes."""

    @property
    def num_bytes(self) -> int:
        """What it holds at most."""

    def start(self, slots: int, page_bytes: int) -> LiveTier:
        """At work. Raises ConfigError if there is no room for so many pages."""


class Ages:
    """Nodes to be taken least recently used first, the deepest of a path first."""

    def __init__(self) -> None:
        # (last_used, -depth, tie, node); entries may be stale
        self._heap: list[tuple[int, int, int, Node]] = []
        self._ties = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, node: Node) -> None:
        """As old as it is now: an older entry no longer counts."""
        heapq.heappush(self._heap, (node.last_used, -node.depth, next(self._ties), node))

    def pop(self) -> Node | None:
        """The node of the oldest entry, of which there must be one; None if it was used since."""
        used, _, _, node = heapq.heappop(self._heap)
        return node if used == node.last_used else None

    def restart(self, nodes: Iterable[Node]) -> None:
        """With one entry for each of these."""
        self._heap = [(n.last_used, -n.depth, next(self._ties), n) for n in nodes]
        heapq.heapify(self._heap)


class Shelf:
    """The slots of a tier, and the nodes that have them: Node.away."""

    def __init__(self, tier: Behind, pool: PagePool, sizes: PageSizes) -> None:
        """Raises ConfigError if a granule does not fit, or the tier cannot start."""
        self._pool, self._slots = pool, tier.num_bytes // pool.page_bytes
        together = sum(sizes.granule // tokens for tokens in sizes.tokens)
        if self._slots < together:
            raise ConfigError(
                f"a KV tier of {tier.num_bytes:,} bytes has room for {self._slots} pages of {pool.page_bytes:,} "
                f"bytes, and {together} belong together: raise its size, or lower page_tokens"
            )
        self._live: LiveTier = tier.start(self._slots, pool.page_bytes)
        self._free = list(range(self._slots - 1, -1, -1))
        self._nodes: set[Node] = set()
        self._ages = Ages()
        self._demoted = self._promoted = 0

    @property
    def moved(self) -> dict[str, int]:
        """What it has done so far, as Counters has it."""
        return {
            "demoted_pages": self._demoted,
            "promoted_pages": self._promoted,
            "tier_written_bytes": self._live.written,
            "tier_read_bytes": self._live.read,
        }

    def used(self, node: Node) -> None:
        """The node was just used, and gives way later."""
        if node in self._nodes:
            self._ages.add(node)
            if len(self._ages) > STALE * len(self._nodes):
                self._ages.restart(self._nodes)

    def demote(self, node: Node, group: int) -> list[Node]:
        """Keeps a copy of the node's pages in this group, if there is room; returns the nodes that gave way."""
        gone: list[Node] = []
        pages = node.pages[group]
        if not pages or node.away[group] is not None or not self._live.takes:
            return gone
        while len(self._free) < len(pages):
            if not len(self._ages):
                return gone
            oldest = self._ages.pop()
            if oldest in self._nodes and not oldest.wanted:
                self.forget(oldest)
                gone.append(oldest)
        node.away[group] = tuple(self._free.pop() for _ in pages)
        for slot, page in zip(node.away[group] or (), pages, strict=True):
            self._live.put(slot, self._pool.arena_PX[page])
        self._demoted += len(pages)
        self._nodes.add(node)
        self._ages.add(node)
        return gone

    def bring(self, granules: list[tuple[Node, int, tuple[int, ...]]]) -> list[bool]:
        """Fills pages of the pool with what lies here of (node, group). False: it is lost, and the node forgotten."""
        slots = [slot for node, group, _ in granules for slot in node.away[group] or ()]
        targets = [self._pool.arena_PX[page] for _, _, pages in granules for page in pages]
        came = iter(self._live.get(slots, targets))
        found = [min(itertools.islice(came, len(pages))) for _, _, pages in granules]
        for (node, _, pages), whole in zip(granules, found, strict=True):
            self._promoted += len(pages) * whole
            if not whole:
                self.forget(node)
        return found

    def ahead(self, slots: list[int]) -> None:
        """These will be brought soon."""
        self._live.ahead(slots)

    def want(self, node: Node) -> None:
        """Somebody will bring it, and until then it stays."""
        node.wanted += 1

    def unwant(self, node: Node) -> None:
        """Somebody has brought it, or thought better of it."""
        node.wanted -= 1
        if node in self._nodes:
            self._ages.add(node)  # its entry may be gone

    def forget(self, node: Node) -> None:
        """Frees all that lies here of the node."""
        for slots in node.away:
            self._free += slots or ()
        node.away = [None] * len(node.away)
        self._nodes.discard(node)

    def clear(self) -> list[Node]:
        """Forgets everything that nobody wants; returns the nodes."""
        gone = [node for node in self._nodes if not node.wanted]
        for node in gone:
            self.forget(node)
        return gone

    def close(self) -> None:
        self._live.close()

    def check(self, nodes: Iterable[Node]) -> None:
        """Every slot is free, or one node's, which can give way."""
        listed = [slot for node in nodes for slots in node.away for slot in slots or ()]
        assert sorted(listed + self._free) == list(range(self._slots)), "a slot is lost, or two nodes' own"
        assert self._nodes == {node for node in nodes if any(node.away)}, "the shelf and the tree disagree"
        assert not any(node.wanted for node in self._nodes), "between steps nobody waits for a page"
