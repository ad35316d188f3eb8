"""Block tables: which pages hold which tokens of which sequence, through its whole life.

    admit      a sequence without pages takes those of its longest cached prefix; bring those that lie on a tier
    reserve    pages exist, and are its own, for the positions that a span will write
    advance    positions are computed: full granules enter the prefix tree, pages nobody can read again are freed
    branch     a draft that is a tree: tables that differ from `stop` on; settle keeps one of them (kv/branches.py)
    rewind     the last positions are let go of: the text goes on in another way from there
    share      a fork lists its parent's pages; whoever writes a shared page first copies it
    swap       pages move to host memory and back
    release    the sequence lets go of everything

Pure bookkeeping over a PagePool: no keys or values are looked at here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headrace.errors import OutOfPages
from headrace.kv.arrivals import Arrivals
from headrace.kv.groups import GroupSpec, PageSizes
from headrace.kv.holding import Holding, lengths, live
from headrace.kv.pool import AWAY, FREED, PagePool
from headrace.kv.prefix import Node, PrefixTree
from headrace.kv.present import Present


class BlockTables:
    """Every sequence's pages. See the module's picture; kv/pool.py for what a page may be."""

    def __init__(
        self,
        pool: PagePool,
        host: PagePool | None,
        groups: Sequence[GroupSpec],
        sizes: PageSizes,
        tree: PrefixTree | None,
    ) -> None:
        self.pool = pool
        self.host = host
        self.groups = tuple(groups)
        self.sizes = sizes
        self._tree = tree
        self._tables: dict[int, list[list[int]]] = {}
        self._tips: dict[int, Node] = {}
        self._arrivals = None
        if tree is not None and tree.shelf is not None:
            self._arrivals = Arrivals(pool, tree, tree.shelf, sizes)
        self._swapped: dict[int, list[list[int]]] = {}
        self.prompts_only = False
        """Whether what a sequence generated differs from the same tokens in a prompt, and so is not looked up."""
        self.present: dict[int, Present] = {}
        """Sequence -> which of its tokens each layer has, until it lets go of its pages; none where each has all."""
        self._branches: dict[int, list[int]] = {}
        """Sequence -> further tables of its own in this step, called by negative numbers."""

    # ---- what a policy asks; changes nothing ----

    @property
    def available(self) -> int:
        """Pages that can be had without pausing anybody."""
        return self.pool.num_free + self.pool.num_evictable

    def holding(self, seq: int, computed: int) -> Holding:
        """Of a sequence that holds pages."""
        table = self._tables[seq]
        copies = 0
        for group, pages, tokens in zip(self.groups, table, self.sizes.tokens, strict=True):
            index = group.stored(computed) // tokens
            copies += index < len(pages) and self._needs_copy(pages[index])
        return Holding(computed, *lengths(table), copies=copies)

    def swapped_holding(self, seq: int, computed: int) -> Holding:
        """Of a sequence whose pages lie in host memory."""
        listed, live = lengths(self._swapped[seq])
        return Holding(computed, listed, live, brings=sum(live))

    def hit(self, tokens: Sequence[int], salt: str) -> Holding:
        """What a sequence with these tokens would get from the prefix cache. Its last token is always left to run."""
        path = self._match(tokens, salt)
        table = self._table_of(path)
        brings = sum(p == AWAY or self.pool.is_evictable(p) for pages in table for p in pages if p != FREED)
        return Holding(len(path) * self.sizes.granule, *lengths(table), brings=brings)

    def freed_by(self, seqs: Iterable[int]) -> int:
        """Pages that become available if all of these sequences let go."""
        counts: dict[int, int] = {}
        for seq in seqs:
            for pages in self._tables[seq]:
                for page in pages:
                    if page != FREED:
                        counts[page] = counts.get(page, 0) + 1
        return sum(self.pool.count(page) == count for page, count in counts.items())

    def missing(self, seq: int, stop: int) -> int:
        """Pages that a sequence which holds pages would still take to write up to `stop`."""
        triples = zip(self.groups, self._tables[seq], self.sizes.tokens, strict=True)
        return sum(max(0, -(-group.stored(stop) // tokens) - len(pages)) for group, pages, tokens in triples)

    def missing_branches(self, stop: int, ends: Sequence[int]) -> int:
        """Pages that `branch` would take."""
        pairs = [(group, size) for group, size in zip(self.groups, self.sizes.tokens, strict=True)]
        return sum(-(-g.stored(end) // size) - g.stored(stop) // size for end in ends for g, size in pairs)

    def branches(self, seq: int) -> list[int]:
        """The sequence's own table, and its branches."""
        return [seq, *self._branches.get(seq, ())]

    def holds(self, seq: int) -> bool:
        return seq in self._tables

    def live_pages(self, seq: int, group: int) -> list[int]:
        """The group's block table: page numbers in token order, FREED (-1) where a page was freed."""
        return self._tables[seq][group]

    # ---- a sequence's life ----

    def admit(self, seq: int, tokens: Sequence[int], salt: str) -> int:
        """Takes the pages of the longest cached prefix; returns how many tokens they hold (0 without a cache). Those on
        a tier are still to be brought; they stay there until then."""
        assert seq not in self._tables and seq not in self._swapped
        path = self._match(tokens, salt)
        self._tables[seq] = self._table_of(path)
        for page in live(self._tables[seq]):
            self.pool.hold(page)
        if self._tree is not None:
            tip = path[-1] if path else self._tree.root(salt)
            self._tree.touch(tip)
            self._tree.hang(tip)
            self._tips[seq] = tip
        if self._arrivals is not None:
            self._arrivals.expect(seq, path, self._tables[seq])
        return len(path) * self.sizes.granule

    def bring(self, seq: int) -> bool:
        """Brings what lies on a tier of a sequence that was just admitted. False: some of it is lost, and the sequence
        let go of; next time it finds less. Raises OutOfPages."""
        if self._arrivals is None or self._arrivals.bring(seq, self._tables[seq], self._take):
            return True
        self.release(seq)
        return False

    def look_ahead(self, tokens: Sequence[int], salt: str) -> None:
        """A sequence with these tokens will be admitted soon."""
        if self._arrivals is not None:
            self._arrivals.ahead(self._match(tokens, salt))

    def reserve(self, seq: int, start: int, stop: int) -> None:
        """Makes positions [start, stop) writable: own pages up to `stop`, shared ones copied. Raises OutOfPages."""
        for group, pages, tokens in zip(self.groups, self._tables[seq], self.sizes.tokens, strict=True):
            first, end = group.stored(start), group.stored(stop)
            for index in range(first // tokens, min(len(pages), -(-end // tokens))):
                if self._needs_copy(pages[index]):
                    own = self._take()
                    self.pool.copy(pages[index], own)
                    self.pool.drop(pages[index])
                    pages[index] = own
            while len(pages) * tokens < end:
                pages.append(self._take())

    def branch(self, seq: int, stop: int, ends: Sequence[int]) -> None:
        """Further tables of the sequence, the same before `stop`, and writable from there to one of `ends` each. They
        live until `settle` or `release`."""
        for end in ends:
            twin = min(-1, min(self._tables) - 1)
            self._branches.setdefault(seq, []).append(twin)
            self.share(seq, twin, stop)
            self.reserve(twin, stop, end)

    def settle(self, seq: int, kept: int) -> None:
        """Of branches(seq), number `kept` becomes the sequence's table; the others let go of their pages."""
        twins = self._branches.pop(seq, [])
        if kept:
            own, twin = self._tables[seq], twins[kept - 1]
            self._tables[seq], self._tables[twin] = self._tables[twin], own
        for twin in twins:
            self.release(twin)

    def advance(self, seq: int, tokens: Sequence[int], computed: int, cached: int | None = None) -> None:
        """Positions [0, computed) are final: caches full granules (of [0, cached), if given), frees what no later query
        reads."""
        if self._tree is not None:
            self._grow_tree(seq, tokens, computed if cached is None else cached)
        for group, pages in enumerate(self._tables[seq]):
            size = self.sizes.tokens[group]
            kept = self.groups[group].kept(computed)
            if kept == ((0, computed),):
                continue
            for index in range(self.groups[group].stored(computed) // size):
                if pages[index] != FREED and not any(
                    a < (index + 1) * size and index * size < b for a, b in kept
                ):
                    self.pool.drop(pages[index])
                    pages[index] = FREED

    def share(self, parent: int, child: int, computed: int) -> None:
        """The child lists the parent's pages of [0, computed)."""
        assert child not in self._tables
        table = [
            pages[: -(-group.stored(computed) // tokens)]
            for group, pages, tokens in zip(self.groups, self._tables[parent], self.sizes.tokens, strict=True)
        ]
        for page in live(table):
            self.pool.hold(page)
        self._tables[child] = table
        if self._tree is not None:
            tip = self._above(self._tips[parent], computed)
            self._tree.hang(tip)
            self._tips[child] = tip

    def rewind(self, seq: int, computed: int) -> None:
        """Positions from `computed` on are let go of. Only where no group has let go of earlier ones."""
        assert all(group.holds == "all" and group.behind is None for group in self.groups)
        for pages, tokens in zip(self._tables[seq], self.sizes.tokens, strict=True):
            kept = -(-computed // tokens)
            for page in pages[kept:]:
                self.pool.drop(page)
            del pages[kept:]
        if self._tree is not None:
            tip = self._tips[seq]
            self._tips[seq] = self._above(tip, computed)
            self._tree.hang(self._tips[seq])
            self._tree.release(tip)

    def release(self, seq: int) -> None:
        """Lets go of every page, wherever it lies. Harmless for a sequence that has none."""
        self.settle(seq, 0)
        self.present.pop(seq, None)
        if self._arrivals is not None:
            self._arrivals.leave(seq)
        for page in live(self._swapped.pop(seq, [])):
            assert self.host is not None
            self.host.drop(page)
        self._drop_tip(seq)
        for page in live(self._tables.pop(seq, [])):
            self.pool.drop(page)
        if self.pool.lost and not self._tables:  # the next step would find the same again
            self.clear_cache()

    def swap_out(self, seq: int) -> None:
        """Copies the pages to host memory and lets go of them here. Raises OutOfPages if the host is full."""
        assert self.host is not None, "no host memory was set aside"
        pages = len(live(self._tables[seq]))
        if pages > self.host.num_free:
            raise OutOfPages(f"{pages} pages do not fit in the {self.host.num_free} free ones of host memory")
        self._swapped[seq] = [
            [page if page == FREED else _move(self.pool, page, self.host) for page in pages]
            for pages in self._tables[seq]
        ]
        self._drop_tip(seq)
        for page in live(self._tables.pop(seq)):
            self.pool.drop(page)

    def swap_in(self, seq: int, salt: str) -> None:
        """Brings the pages back. They are the sequence's own until `advance` finds them in the prefix tree again.

        Raises OutOfPages, and leaves the sequence where it is, if there is no room here.
        """
        assert self.host is not None
        away = self._swapped[seq]
        needed = sum(lengths(away)[1])
        if needed > self.available:
            raise OutOfPages(f"{needed} swapped pages do not fit in the {self.available} that can be had")
        for _ in range(needed - self.pool.num_free):
            self._make_free()
        del self._swapped[seq]
        self._tables[seq] = [
            [page if page == FREED else _move(self.host, page, self.pool) for page in pages] for pages in away
        ]
        for page in live(away):
            self.host.drop(page)
        if self._tree is not None:
            self._tips[seq] = self._tree.root(salt)
            self._tree.hang(self._tips[seq])

    def clear_cache(self) -> None:
        """Empties the prefix cache of everything that no sequence holds."""
        if self._tree is not None:
            self._tree.clear()

    @property
    def tiered(self) -> bool:
        """Whether pages that leave the pool may lie on a tier."""
        return self._arrivals is not None

    @property
    def moved(self) -> dict[str, int]:
        """What a tier has done so far, as Counters has it."""
        if self.pool.residence is not None:
            return self.pool.residence.moved
        return self._arrivals.shelf.moved if self._arrivals is not None else {}

    def close(self) -> None:
        """Empties the prefix cache, and gives a tier back."""
        self.clear_cache()
        if self._arrivals is not None:
            self._arrivals.shelf.close()
        if self.pool.residence is not None:
            self.pool.residence.close()

    def check(self) -> None:
        """Every invariant; tests call it after each step."""
        self.pool.check(self._tables, self._tree.pages() if self._tree else [])
        if self.host is not None:
            self.host.check(self._swapped, [])
        if self._tree is not None:
            self._tree.check()
            tips: dict[int, int] = {}
            for tip in self._tips.values():
                tips[id(tip)] = tips.get(id(tip), 0) + 1
            assert set(self._tips) == set(self._tables), "every table, and nothing else, hangs on the tree"
            assert all(tip.tips == tips[id(tip)] for tip in self._tips.values()), "a node miscounts its tips"
        assert not set(self._tables) & set(self._swapped), "a sequence is here and away"
        assert set(self.present) <= set(self._tables) | set(self._swapped), (
            "kept of a sequence that has no pages"
        )
        assert not self._branches, "between steps there are no branches"
        assert not self._arrivals, "between steps nobody waits for a page"

    # ---- details ----

    def _match(self, tokens: Sequence[int], salt: str) -> list[Node]:
        return [] if self._tree is None else self._tree.match(tokens, salt, limit=len(tokens) - 1)

    def _table_of(self, path: list[Node]) -> list[list[int]]:
        table: list[list[int]] = []
        for group, size in enumerate(self.sizes.tokens):
            pages: list[int] = []
            for index, node in enumerate(path):
                assert self._tree is not None
                found = node.pages[group] or (AWAY,) * len(node.away[group] or ())
                if not self._tree.needs(group, index, len(path)):
                    found = ()
                pages += [FREED] * (self.sizes.granule // size - len(found)) + list(found)
            table.append(pages)
        return table

    def _grow_tree(self, seq: int, tokens: Sequence[int], computed: int) -> None:
        assert self._tree is not None
        granule, table = self.sizes.granule, self._tables[seq]
        while (self._tips[seq].depth + 1) * granule <= computed:
            tip = self._tips[seq]
            start = tip.depth * granule
            offered = [self._slice(table[group], group, start) for group in range(len(self.groups))]
            node = self._tree.extend(tip, tokens[start : start + granule], offered)
            for group in range(len(self.groups)):
                self._adopt(table[group], group, start, node.pages[group])
            self._tree.hang(node)
            self._tree.release(tip)
            self._tips[seq] = node

    def _slice(self, pages: list[int], group: int, start: int) -> tuple[int, ...] | None:
        """The granule's pages if all are here and none is already some other node's. Of records, those of its last."""
        size, spec, stop = self.sizes.tokens[group], self.groups[group], start + self.sizes.granule
        if spec.passing:  # nobody who comes later reads it
            return None
        part = tuple(pages[(stop - spec.block if spec.holds == "summary" else start) // size : stop // size])
        return None if any(page == FREED or self.pool.is_cached(page) for page in part) else part

    def _adopt(self, pages: list[int], group: int, start: int, node_pages: tuple[int, ...] | None) -> None:
        """Replaces the sequence's copies of a granule by the tree's."""
        stop = (start + self.sizes.granule) // self.sizes.tokens[group]
        for index, page in enumerate(node_pages or (), stop - len(node_pages or ())):
            if pages[index] not in (FREED, page):
                self.pool.hold(page)
                self.pool.drop(pages[index])
                pages[index] = page

    def _needs_copy(self, page: int) -> bool:
        return page != FREED and self.pool.is_shared(page)

    def _take(self) -> int:
        if not self.pool.num_free:
            self._make_free()
        return self.pool.take()

    def _make_free(self) -> None:
        if self._tree is not None:
            self._tree.evict(1)

    def _above(self, tip: Node, computed: int) -> Node:
        """The last node on the way to a tip whose granules are all of [0, computed)."""
        while tip.depth * self.sizes.granule > computed:
            assert tip.parent is not None
            tip = tip.parent
        return tip

    def _drop_tip(self, seq: int) -> None:
        tip = self._tips.pop(seq, None)
        if tip is not None and self._tree is not None:
            self._tree.touch(tip)
            self._tree.release(tip)


def _move(source: PagePool, page: int, target: PagePool) -> int:
    copy = target.take()
    target.arena_PX[copy].copy_(source.arena_PX[page])
    return copy
