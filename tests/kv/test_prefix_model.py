"""PrefixTree against a dictionary from (tenant, tokens) to pages, under random sequences that start, grow and end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.kv.pool import PagePool
from headrace.kv.prefix import Node, PrefixTree

GRANULE = 2
Path = tuple[str, tuple[int, ...]]
"""(salt, tokens): what a node stands for."""
granules = st.tuples(st.integers(0, 1), st.integers(0, 1))
salts = st.sampled_from(["", "tenant"])


@dataclass
class Known:
    """What the dictionary knows of one granule."""

    pages: list[int | None]
    """One per group."""
    used: int = 0


@dataclass
class Living:
    """A sequence that holds pages."""

    salt: str
    tokens: tuple[int, ...]
    tip: Node
    held: list[dict[int, int]] = field(default_factory=list)
    """Per group: granule -> page."""

    @property
    def depth(self) -> int:
        return len(self.tokens) // GRANULE


class TreeMachine(RuleBasedStateMachine):
    """One page per granule and group."""

    windows: ClassVar[tuple[int | None, ...]] = (None,)
    pages: ClassVar[int] = 9

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(self.pages, 64, torch.device("cpu"), poison=True)
        self.tree = PrefixTree(self.pool, GRANULE, self.windows, "stack")
        self.known: dict[Path, Known] = {}
        self.living: list[Living] = []
        self.clock = 0

    # ---- what may happen ----

    @rule(salt=salts, wanted=st.lists(granules, min_size=1, max_size=5))
    def start(self, salt: str, wanted: list[tuple[int, int]]) -> None:
        tokens = tuple(t for granule in wanted for t in granule)
        path = self.tree.match(tokens, salt, limit=len(tokens))
        hit = self.expected_hit(salt, tokens)
        assert len(path) == hit, "not the longest usable prefix"
        seq = Living(salt, tokens[: hit * GRANULE], path[-1] if path else self.tree.root(salt))
        for group in range(len(self.windows)):
            wanted_pages = {i: self.known[salt, tokens[: (i + 1) * GRANULE]].pages[group] for i in range(hit)}
            needed = {i: page for i, page in wanted_pages.items() if i in self.needed(group, hit)}
            assert {i: (page,) for i, page in needed.items()} == {i: path[i].pages[group] for i in needed}
            seq.held.append({i: page for i, page in needed.items() if page is not None})
            for page in seq.held[group].values():
                self.pool.hold(page)
        self.touch(seq)
        self.tree.touch(seq.tip)
        self.tree.hang(seq.tip)
        self.living.append(seq)

    @precondition(lambda self: self.living)
    @rule(data=st.data(), tokens=granules)
    def grow(self, data: st.DataObject, tokens: tuple[int, int]) -> None:
        """A sequence computes its next granule, which somebody else may have computed before."""
        seq = data.draw(st.sampled_from(self.living))
        while self.pool.num_free < len(self.windows):
            if not self.pool.num_evictable:
                return
            self.evict(1)
        own = [self.pool.take() for _ in self.windows]
        index = seq.depth
        node = self.tree.extend(seq.tip, tokens, [(page,) for page in own])
        seq.tokens += tokens
        known = self.known.setdefault((seq.salt, seq.tokens), Known([None] * len(own)))
        for group, page in enumerate(own):
            if known.pages[group] is None:
                known.pages[group] = page
            else:
                self.pool.hold(known.pages[group] or 0)
                self.pool.drop(page)
            seq.held[group][index] = known.pages[group] or 0
        assert node.pages == [(page,) for page in known.pages]
        self.tree.hang(node)
        self.tree.release(seq.tip)
        seq.tip = node
        self.mark(seq.salt, seq.tokens)
        self.slide(seq)

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def lose_own_copies(self, data: st.DataObject) -> None:
        """A sequence comes back without pages of its own, and finds its granules one by one: it has none to offer."""
        seq = data.draw(st.sampled_from(self.living))
        self.end(seq)
        node = self.tree.root(seq.salt)
        self.tree.hang(node)
        for start in range(0, len(seq.tokens), GRANULE):
            child = self.tree.extend(node, seq.tokens[start : start + GRANULE], [None] * len(self.windows))
            known = self.known.setdefault(
                (seq.salt, seq.tokens[: start + GRANULE]), Known([None] * len(self.windows))
            )
            assert [pages[0] if pages else None for pages in child.pages] == known.pages
            self.tree.hang(child)
            self.tree.release(node)
            node = child
            self.mark(seq.salt, seq.tokens[: start + GRANULE])
        self.living.append(Living(seq.salt, seq.tokens, node, [{} for _ in self.windows]))

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(self.living)))

    @rule(count=st.integers(1, 4))
    def evict(self, count: int) -> None:
        for _ in range(count):
            victim = self.oldest()
            before = {page for page in self.tree.pages() if self.pool.is_evictable(page)}
            freed = self.tree.evict(1)
            gone = {page for page in before if not self.pool.is_evictable(page)}
            assert freed == len(gone) and (freed >= 1 or not before)
            if len(self.windows) == 1 and self.windows[0] is None:
                assert gone == ({victim} if victim is not None else set()), "not the least recently used"
            for known in self.known.values():
                known.pages = [None if page in gone else page for page in known.pages]

    @rule()
    def clear(self) -> None:
        self.tree.clear()
        assert self.pool.num_evictable == 0
        held = {page for seq in self.living for group in seq.held for page in group.values()}
        for known in self.known.values():
            known.pages = [page if page in held else None for page in known.pages]

    # ---- what must hold ----

    @invariant()
    def books_balance(self) -> None:
        self.tree.check()
        self.pool.check(
            {i: [list(group.values()) for group in seq.held] for i, seq in enumerate(self.living)},
            self.tree.pages(),
        )
        listed = {page for known in self.known.values() for page in known.pages if page is not None}
        assert set(self.tree.pages()) == listed

    def teardown(self) -> None:
        for seq in list(self.living):
            self.end(seq)
        self.tree.clear()
        assert not self.tree._nodes and self.pool.num_free == self.pages, "something was left"

    # ---- the obvious way ----

    def needed(self, group: int, hit: int) -> set[int]:
        """Granules read by queries from the last hit token on (a fork runs that one again)."""
        window = self.windows[group]
        first = 0 if window is None else max(0, hit * GRANULE - window)
        return {p // GRANULE for p in range(first, hit * GRANULE)}

    def expected_hit(self, salt: str, tokens: tuple[int, ...]) -> int:
        for hit in range(len(tokens) // GRANULE, 0, -1):
            paths = [(salt, tokens[: (i + 1) * GRANULE]) for i in range(hit)]
            if all(path in self.known for path in paths) and all(
                self.known[paths[i]].pages[group] is not None
                for group in range(len(self.windows))
                for i in self.needed(group, hit)
            ):
                return hit
        return 0

    def oldest(self) -> int | None:
        """The page of the least recently used granule that nobody holds; of one path, the deepest."""
        held = {page for seq in self.living for group in seq.held for page in group.values()}
        free = [
            (known.used, -len(tokens), page)
            for (_, tokens), known in self.known.items()
            for page in known.pages
            if page is not None and page not in held
        ]
        return min(free)[2] if free else None

    def touch(self, seq: Living) -> None:
        self.clock += 1
        for depth in range(1, seq.depth + 1):
            path = (seq.salt, seq.tokens[: depth * GRANULE])
            if path in self.known:
                self.known[path].used = self.clock

    def mark(self, salt: str, tokens: tuple[int, ...]) -> None:
        """One granule is used now; those before it are touched when the sequence lets go."""
        self.clock += 1
        self.known[salt, tokens].used = self.clock

    def slide(self, seq: Living) -> None:
        """Drops what left the windows."""
        for group, held in enumerate(seq.held):
            for index in set(held) - self.needed(group, seq.depth):
                self.pool.drop(held.pop(index))

    def end(self, seq: Living) -> None:
        self.living.remove(seq)
        for held in seq.held:
            for page in held.values():
                self.pool.drop(page)
        self.touch(seq)
        self.tree.touch(seq.tip)
        self.tree.release(seq.tip)


class WindowMachine(TreeMachine):
    windows = (3,)


class MixedMachine(TreeMachine):
    windows = (None, 3)
    pages = 14


SETTINGS = settings(max_examples=40, stateful_step_count=30, deadline=None, derandomize=True)


class TestFull(TreeMachine.TestCase):
    settings = SETTINGS


class TestWindow(WindowMachine.TestCase):
    settings = SETTINGS


class TestMixed(MixedMachine.TestCase):
    settings = SETTINGS
