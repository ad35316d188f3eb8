"""Pages that come back from a tier: who makes room for whom, and what happens to those that are lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from headrace.kv.groups import GroupSpec, Member, PageSizes
from headrace.kv.pool import FREED, PagePool
from headrace.kv.prefix import PrefixTree
from headrace.kv.shelf import Shelf
from headrace.kv.tables import BlockTables
from headrace.kv.tiers.host import Host
from tests.kv.test_tables import live, marks, run, started

PAGE, GRANULE = 64, 4
CPU = torch.device("cpu")
A, B, C = (list(range(start, start + 50)) for start in (100, 200, 300))


def make(pages: int, slots: int, windows: Sequence[int | None] = (None,)) -> BlockTables:
    groups = [GroupSpec(f"g{i}", (Member(i, (0,), 1),), window) for i, window in enumerate(windows)]
    pool, sizes = PagePool(pages, PAGE, CPU, poison=True), PageSizes(PAGE, (GRANULE,) * len(groups), GRANULE)
    shelf = Shelf(Host(size=str(slots * PAGE)), pool, sizes)
    return BlockTables(pool, None, groups, sizes, PrefixTree(pool, GRANULE, windows, "stack", shelf=shelf))


def leave(tables: BlockTables, seq: int, tokens: Sequence[int], length: int = 8) -> None:
    """A sequence computes and ends: its pages bear its number, and are the tree's."""
    assert started(tables, seq, length, tokens) == 0
    tables.release(seq)
    tables.check()


def test_what_left_is_planned_with_and_comes_back() -> None:
    tables = make(pages=4, slots=8)
    for seq, tokens in ((1, A), (2, B), (3, C)):
        leave(tables, seq, tokens)
    hit = tables.hit(A[:9], "")
    assert (hit.computed, hit.live, hit.brings) == (8, (2,), 2) and tables.available == 4
    assert tables.admit(4, A[:9], "") == 8 and tables.bring(4)
    tables.check()
    assert [marks(tables, page, 4) for page in live(tables, 4)] == [[1] * 4, [1] * 4]
    run(tables, 4, 8, 9, A)
    tables.release(4)
    tables.check()


def test_newcomers_of_a_step_take_nothing_from_each_other() -> None:
    """One is promised what is in the pool, the other what is on the tier, and both are full."""
    tables = make(pages=4, slots=2)
    for seq, tokens in ((1, A), (2, B), (3, C)):
        leave(tables, seq, tokens)
    assert tables.hit(A[:9], "").brings == 2 and tables.hit(B[:9], "").brings == 2
    assert tables.admit(4, A[:9], "") == 8 and tables.admit(5, B[:9], "") == 8
    assert tables.bring(4) and tables.bring(5)
    tables.check()
    for seq, number in ((4, 1), (5, 2)):
        assert [marks(tables, page, 4) for page in live(tables, seq)] == [[number] * 4] * 2
    assert tables.hit(C[:9], "").computed == 0, "there was no room for it anywhere"
    tables.release(5)
    assert started(tables, 6, 8, C) == 0
    assert tables.hit(B[:9], "").computed == 8, "what is in the pool again need not be on the tier as well"


def test_two_who_begin_alike_bring_it_once() -> None:
    tables = make(pages=5, slots=8)
    for seq, tokens in ((1, A), (2, B), (3, C)):
        leave(tables, seq, tokens)
    before = tables.moved["promoted_pages"]
    assert tables.admit(4, A[:9], "") == 8 and tables.admit(5, A[:9], "") == 8
    assert tables.bring(4) and tables.bring(5)
    tables.check()
    assert live(tables, 4) == live(tables, 5) and tables.moved["promoted_pages"] - before <= 2


def test_who_is_let_go_before_it_arrives_leaves_nothing() -> None:
    tables = make(pages=4, slots=8)
    for seq, tokens in ((1, A), (2, B), (3, C)):
        leave(tables, seq, tokens)
    tables.admit(4, A[:9], "")
    tables.release(4)
    tables.check()
    assert tables.hit(A[:9], "").computed == 8
    tables.clear_cache()
    tables.check()
    assert tables.available == tables.pool.num_free == 4 and tables.hit(A[:9], "").computed == 0


def test_what_is_lost_is_lost_for_all_and_the_pages_are_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = make(pages=4, slots=8)
    for seq, tokens in ((1, A), (2, B), (3, C)):
        leave(tables, seq, tokens)
    arrivals = tables._arrivals
    assert arrivals is not None
    monkeypatch.setattr(arrivals.shelf._live, "get", lambda slots, pages: [i != 1 for i in range(len(slots))])
    assert tables.admit(4, A[:9], "") == 8 and tables.admit(5, A[:9], "") == 8
    assert not tables.bring(4) and not tables.bring(5)
    tables.check()
    assert not tables.holds(4) and not tables.holds(5) and tables.available == 4
    assert tables.hit(A[:9], "").computed == 4, "what came is good"


def test_only_what_a_window_still_reads_comes_back() -> None:
    tables = make(pages=8, slots=16, windows=(None, 3))
    for seq, tokens in ((1, A), (2, B), (3, C)):
        leave(tables, seq, tokens, 16)
    hit = tables.hit(A[:17], "")
    assert hit.computed == 16 and hit.live == (4, 1)
    assert tables.admit(4, A[:17], "") == 16 and tables.bring(4)
    tables.check()
    assert [page == FREED for page in tables.live_pages(4, 1)] == [True] * 3 + [False]
