"""The prefix tree: which pages hold the keys and values of which tokens, for every prompt seen lately.

    root -- granule 0 -- granule 1 -- granule 2        a node is one granule: `granule` tokens that fill whole pages of
                     \\-- granule 1'                    every group; its key is a keyed hash of its parent's key and its
                                                        tokens; the root's key carries the stack and the tenant's salt

A node lists the pages of its granule per group, or None where they were given up. A hit of h tokens needs, in each full
group, the pages of every node before h; in a group with a window, only those that a query at h can still read.
Pages that only the tree holds are evicted least recently used first, the deepest of a path first: to a tier, if there
is one (kv/shelf.py), from which a hit brings them back.

Paper   https://arxiv.org/abs/2312.07104 (SGLang's RadixAttention), with whole granules as edges
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.kv.pool import PagePool
from headrace.kv.shelf import STALE, Ages, Shelf

MAX_SALTS = 1024
"""Tenants whose empty roots are remembered; beyond, empty roots are forgotten."""


@dataclass(eq=False, slots=True)
class Node:
    """One granule of somebody's tokens."""

    key: bytes
    parent: Node | None
    depth: int
    """Granules from the root: this node ends at token depth * granule."""
    pages: list[tuple[int, ...] | None] = field(default_factory=list)
    """Per group, the granule's pages in order; None where given up."""
    away: list[tuple[int, ...] | None] = field(default_factory=list)
    """Per group, the tier's slots that hold the same; None where there are none."""
    children: int = 0
    tips: int = 0
    """Sequences that will hang their next granule here."""
    wanted: int = 0
    """Sequences that are about to bring back what lies on the tier."""
    last_used: int = 0


class PrefixTree:
    """Finds, keeps and evicts pages by the tokens that they hold."""

    def __init__(
        self,
        pool: PagePool,
        granule: int,
        windows: Sequence[int | None],
        fingerprint: str,
        secret: bytes | None = None,
        sinks: Sequence[int] = (),
        shelf: Shelf | None = None,
    ) -> None:
        """windows, sinks: per group, what a query reads (headrace/kv/groups.py); () is no sink anywhere."""
        self._pool = pool
        self.shelf = shelf
        self._sinks = tuple(sinks) or (0,) * len(windows)
        self.granule = granule
        self._windows = tuple(windows)
        self._fingerprint = fingerprint.encode()
        self._secret = secret or secrets.token_bytes(32)  # keyed: nobody can craft tokens that collide
        self._nodes: dict[bytes, Node] = {}
        self._roots: dict[str, Node] = {}
        self._ages = Ages()
        self._clock = itertools.count(1)

    def root(self, salt: str) -> Node:
        """Where sequences of this tenant start. Roots hold no pages and are never evicted."""
        if salt not in self._roots:
            if len(self._roots) >= MAX_SALTS:
                self._roots = {s: n for s, n in self._roots.items() if n.children or n.tips}
            key = self._hash(self._fingerprint, salt.encode())
            self._roots[salt] = Node(key=key, parent=None, depth=0)
        return self._roots[salt]

    def match(self, tokens: Sequence[int], salt: str, limit: int) -> list[Node]:
        """The nodes of the longest usable prefix of at most `limit` tokens, first granule first. Changes nothing."""
        node, path = self.root(salt), []
        for start in range(0, limit - self.granule + 1, self.granule):
            child = self._nodes.get(self._key(node, tokens[start : start + self.granule]))
            if child is None:
                break
            path.append(child)
            node = child
        while path and not self._usable(path):
            path.pop()
        return path

    def first_needed(self, group: int, depth: int) -> int:
        """The first granule that a sequence resuming at token depth * granule reads in this group."""
        window = self._windows[group]
        if window is None:
            return 0
        # one token of slack, as in GroupSpec.kept
        return max(0, depth * self.granule - window) // self.granule

    def needs(self, group: int, index: int, depth: int) -> bool:
        """Whether such a sequence reads the granule number `index`."""
        return index >= self.first_needed(group, depth) or index * self.granule < self._sinks[group]

    def touch(self, node: Node) -> None:
        """Marks a path as just used, so that it is evicted last."""
        now, step = next(self._clock), node
        while step.parent is not None:
            self._mark(step, now)
            step = step.parent
        if len(self._ages) > STALE * (len(self._nodes) + 1):
            self._ages.restart(self._nodes.values())

    def extend(self, tip: Node, tokens: Sequence[int], pages: list[tuple[int, ...] | None]) -> Node:
        """Adds the granule `tokens` below `tip` with these pages, or finds it there.

        An existing node keeps its own pages; groups that it had given up get the ones offered. Returns the node; the
        caller replaces its own pages by the node's (same tokens, same stack: same bytes).
        """
        key = self._key(tip, tokens)
        node = self._nodes.get(key)
        if node is None:
            nothing = [None] * len(pages)
            node = Node(key=key, parent=tip, depth=tip.depth + 1, pages=[*nothing], away=[*nothing])
            self._nodes[key] = node
            tip.children += 1
        for group, offered in enumerate(pages):
            if node.pages[group] is None and offered is not None:
                self.give(node, group, offered)
        self._mark(
            node, next(self._clock)
        )  # those above it are held: BlockTables touches the path when it lets go
        return node

    def give(self, node: Node, group: int, pages: tuple[int, ...]) -> None:
        """Pages with the node's bytes, which a table holds; it has none in this group."""
        for page in pages:
            self._pool.cache(page)
        node.pages[group] = pages

    def hang(self, node: Node) -> None:
        """A sequence will add its next granule below `node`, which therefore stays."""
        node.tips += 1

    def release(self, node: Node) -> None:
        """A sequence no longer hangs on `node`; forgets it if it was only kept for that."""
        node.tips -= 1
        assert node.tips >= 0
        self._prune(node)

    def evict(self, pages: int, demote: bool = True) -> int:
        """Frees at least this many pages that only the tree holds, oldest first; returns how many it freed."""
        freed, rebuilt = 0, False
        while freed < pages and self._pool.num_evictable:
            if not len(self._ages):
                assert not rebuilt, "pages are evictable but no node lists them"
                self._ages.restart(self._nodes.values())
                rebuilt = True
            node = self._ages.pop()
            if node is not None and self._nodes.get(node.key) is node:
                count = self._give_up(node, demote)
                freed, rebuilt = freed + count, rebuilt and not count
        return freed

    def clear(self) -> None:
        """Forgets everything that no sequence holds, wherever it lies."""
        for node in self.shelf.clear() if self.shelf is not None else ():
            self._prune(node)
        self.evict(len(self._pool), demote=False)

    def pages(self) -> list[int]:
        """Every page that the tree lists."""
        return [page for node in self._nodes.values() for pages in node.pages if pages for page in pages]

    def check(self) -> None:
        """Parents are present, children are counted, and no empty leaf is left."""
        children: dict[int, int] = {}
        for node in self._nodes.values():
            parent = node.parent
            assert parent is not None and (parent.parent is None or parent.key in self._nodes), (
                "an orphan node"
            )
            assert node.depth == parent.depth + 1
            children[id(parent)] = children.get(id(parent), 0) + 1
        for node in itertools.chain(self._nodes.values(), self._roots.values()):
            assert node.children == children.get(id(node), 0), "a node miscounts its children"
        for node in self._nodes.values():
            assert node.children or node.tips or any(node.pages) or any(node.away), "an empty leaf"
        if self.shelf is not None:
            self.shelf.check(self._nodes.values())

    def _usable(self, path: list[Node]) -> bool:
        depth = len(path)
        return all(
            path[i].pages[group] is not None or path[i].away[group] is not None
            for group in range(len(self._windows))
            for i in range(depth)
            if self.needs(group, i, depth)
        )

    def _give_up(self, node: Node, demote: bool) -> int:
        """Frees the node's pages that nobody holds, and the node itself once it is an empty leaf."""
        count = 0
        for group, pages in enumerate(node.pages):
            freed = sum(map(self._pool.is_evictable, pages or ()))
            if pages and freed:  # a granule with a missing page is of no use: the others leave the tree too
                for gone in self.shelf.demote(node, group) if demote and self.shelf is not None else ():
                    self._prune(gone)
                for page in pages:
                    self._pool.uncache(page)
                node.pages[group] = None
                count += freed
        self._prune(node)
        return count

    def _prune(self, node: Node) -> None:
        """Forgets `node` and its ancestors as far as they are empty leaves."""
        while node.parent is not None and self._nodes.get(node.key) is node:
            if node.children or node.tips or any(node.pages) or any(node.away):
                return
            del self._nodes[node.key]
            node.parent.children -= 1
            node = node.parent

    def _mark(self, node: Node, now: int) -> None:
        node.last_used = now
        self._ages.add(node)
        if self.shelf is not None:
            self.shelf.used(node)

    def _key(self, parent: Node, tokens: Sequence[int]) -> bytes:
        return self._hash(parent.key, array("q", tokens).tobytes())

    def _hash(self, *parts: bytes) -> bytes:
        digest = hashlib.blake2b(key=self._secret, digest_size=16)
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.digest()
