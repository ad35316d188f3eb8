"""Arrivals: sequences just admitted, some of whose prefix lies on a tier, until it is in pages of the pool.

Two steps, because to bring pages means to make room, which must not take what another newcomer of the same step was
promised: first every newcomer holds what is here, then each brings what is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from headrace.kv.groups import PageSizes
from headrace.kv.pool import AWAY, PagePool
from headrace.kv.prefix import Node, PrefixTree
from headrace.kv.shelf import Shelf


class Arrivals:
    """Of one BlockTables, whose tables list AWAY where a page is to come."""

    def __init__(self, pool: PagePool, tree: PrefixTree, shelf: Shelf, sizes: PageSizes) -> None:
        self.shelf = shelf
        self._pool, self._tree, self._sizes = pool, tree, sizes
        self._paths: dict[int, list[Node]] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def expect(self, seq: int, path: list[Node], table: list[list[int]]) -> None:
        """The sequence was admitted with this path. What lies on the tier of it stays until `leave`."""
        if any(AWAY in pages for pages in table):
            self._paths[seq] = path
            for node in path:
                self.shelf.want(node)

    def bring(self, seq: int, table: list[list[int]], take: Callable[[], int]) -> bool:
        """Pages of the pool for all that is AWAY in its table. False: some of it is lost."""
        if seq not in self._paths:
            return True
        asked: list[tuple[Node, int, tuple[int, ...]]] = []
        lost = False
        for node, group, start, stop in self._places(seq, table):
            known = node.pages[group]
            if known is not None:  # another newcomer has brought it
                for page in known:
                    self._pool.hold(page)
                table[group][start:stop] = known
            elif node.away[group] is not None:
                for index in range(start, stop):
                    table[group][index] = take()
                asked.append((node, group, tuple(table[group][start:stop])))
            else:  # another newcomer has lost it
                lost = True
        came = self.shelf.bring(asked)
        for (node, group, pages), whole in zip(asked, came, strict=True):
            if whole:
                self._tree.give(node, group, pages)
        self.leave(seq)
        return all(came) and not lost

    def leave(self, seq: int) -> None:
        """It has arrived, or will not. Harmless for others."""
        for node in self._paths.pop(seq, ()):
            self.shelf.unwant(node)

    def ahead(self, path: Sequence[Node]) -> None:
        """This path will be brought soon."""
        depth = len(path)
        self.shelf.ahead(
            [
                slot
                for index, node in enumerate(path)
                for group, slots in enumerate(node.away)
                if slots and node.pages[group] is None and self._tree.needs(group, index, depth)
                for slot in slots
            ]
        )

    def _places(self, seq: int, table: list[list[int]]) -> Iterator[tuple[Node, int, int, int]]:
        """(node, group, start, stop): where the table lists pages that are away."""
        for group, size in enumerate(self._sizes.tokens):
            pages, granule = table[group], self._sizes.granule // size
            for index, node in enumerate(self._paths[seq]):
                stop = (index + 1) * granule
                count = pages[stop - granule : stop].count(AWAY)
                if count:
                    yield node, group, stop - count, stop
