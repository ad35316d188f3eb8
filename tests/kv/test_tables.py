"""BlockTables: every arrow of a sequence's life, and what it does to pages and their bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from headrace.errors import OutOfPages
from headrace.kv.groups import GroupSpec, Member, PageSizes
from headrace.kv.pool import FREED, PagePool
from headrace.kv.prefix import PrefixTree
from headrace.kv.tables import BlockTables

CPU = torch.device("cpu")
TOKENS = list(range(100, 200))


def make(
    pages: int = 32,
    windows: Sequence[int | None] = (None,),
    sizes: Sequence[int] = (4,),
    host: int | None = None,
    cache: bool = True,
) -> BlockTables:
    groups = [GroupSpec(f"g{i}", (Member(i, (0,), 1),), window) for i, window in enumerate(windows)]
    pool = PagePool(pages, 64, CPU, poison=True)
    granule = math.lcm(*sizes)
    return BlockTables(
        pool,
        None if host is None else PagePool(host, 64, CPU, poison=True),
        groups,
        PageSizes(64, tuple(sizes), granule),
        PrefixTree(pool, granule, windows, "stack") if cache else None,
    )


def run(tables: BlockTables, seq: int, start: int, stop: int, tokens: Sequence[int] = TOKENS) -> None:
    """Positions [start, stop) are computed; their pages are marked with the sequence's number."""
    tables.reserve(seq, start, stop)
    for group, size in enumerate(tables.sizes.tokens):
        for p in range(start, stop):
            page = tables.live_pages(seq, group)[p // size]
            assert not tables.pool.is_shared(page), "a shared page would be written"
            tables.pool.arena_PX[page, p % size] = seq
    tables.advance(seq, tokens, stop)
    tables.check()


def started(
    tables: BlockTables, seq: int, length: int, tokens: Sequence[int] = TOKENS, salt: str = ""
) -> int:
    """A sequence runs up to `length`; returns how much of it came from the cache."""
    hit = tables.admit(seq, tokens[: length + 1], salt)
    run(tables, seq, hit, length, tokens)
    return hit


def live(tables: BlockTables, seq: int, group: int = 0) -> list[int]:
    return [page for page in tables.live_pages(seq, group) if page != FREED]


def marks(tables: BlockTables, page: int, count: int) -> list[int]:
    marked: list[int] = tables.pool.arena_PX[page, :count].tolist()
    return marked


# ---- admit, reserve, advance ----


def test_pages_come_as_tokens_need_them() -> None:
    tables = make(sizes=(4, 6), windows=(None, None))
    assert tables.admit(1, TOKENS[:9], "") == 0 and tables.holds(1)
    assert tables.holding(1, 0).listed == (0, 0)
    for stop, listed in [(1, (1, 1)), (4, (1, 1)), (5, (2, 1)), (7, (2, 2)), (13, (4, 3))]:
        tables.reserve(1, stop - 1, stop)
        assert tables.holding(1, stop).listed == tables.holding(1, stop).live == listed
    assert tables.available == 32 - 7
    tables.check()


def test_reserving_again_takes_nothing() -> None:
    tables = make()
    tables.admit(1, TOKENS[:9], "")
    tables.reserve(1, 0, 9)
    before = list(tables.live_pages(1, 0))
    tables.reserve(1, 3, 9)
    assert tables.live_pages(1, 0) == before


def test_reserve_raises_when_nothing_can_be_evicted() -> None:
    tables = make(pages=2)
    tables.admit(1, TOKENS[:13], "")
    with pytest.raises(OutOfPages):
        tables.reserve(1, 0, 12)
    tables.release(1)
    tables.check()
    assert tables.pool.num_free == 2


def test_full_granules_are_found_by_the_next_sequence() -> None:
    tables = make()
    started(tables, 1, 11)
    assert started(tables, 2, 11) == 8
    assert live(tables, 2)[:2] == live(tables, 1)[:2] and live(tables, 2)[2] != live(tables, 1)[2]
    other = TOKENS[:5] + [0] * 20
    assert started(tables, 3, 10, other) == 4
    assert started(tables, 4, 10, salt="tenant") == 0


def test_the_last_token_is_always_left_to_run() -> None:
    tables = make()
    started(tables, 1, 8)
    assert tables.admit(2, TOKENS[:8], "") == 4
    assert tables.admit(3, TOKENS[:9], "") == 8
    assert tables.admit(4, TOKENS[:4], "") == 0


def test_the_cache_outlives_the_sequence_and_can_be_refused() -> None:
    tables = make()
    started(tables, 1, 9)
    tables.release(1)
    assert tables.available == 32 and tables.pool.num_free == 30
    assert tables.admit(2, [], "") == 0
    tables.release(2)
    assert tables.admit(3, TOKENS[:9], "") == 8


def test_two_that_compute_the_same_end_with_one_copy() -> None:
    tables = make()
    tables.admit(1, TOKENS[:9], "")
    tables.admit(2, TOKENS[:9], "")
    run(tables, 1, 0, 9)
    free = tables.pool.num_free
    run(tables, 2, 0, 9)
    assert live(tables, 2)[:2] == live(tables, 1)[:2] and live(tables, 2)[2] != live(tables, 1)[2]
    assert tables.pool.num_free == free - 1
    assert marks(tables, live(tables, 1)[0], 4) == [1] * 4, "the first copy stays"


def test_new_pages_evict_cached_ones() -> None:
    tables = make(pages=4)
    started(tables, 1, 16)
    tables.release(1)
    assert tables.pool.num_free == 0 and tables.available == 4
    started(tables, 2, 9, [0] * 20)
    assert tables.hit(TOKENS[:17], "").computed == 4, "the deepest granules went first"
    tables.check()


def test_hit_foretells_admission() -> None:
    tables = make(windows=(None, 4), sizes=(4, 4))
    started(tables, 1, 17)
    wanted = tables.hit(TOKENS[:17], "")
    assert wanted.computed == 16 and wanted.brings == 0, (
        "they are held, and so not taken out of what is available"
    )
    tables.release(1)
    wanted, before = tables.hit(TOKENS[:17], ""), tables.available
    assert wanted.computed == 16 and wanted.listed == (4, 4) and wanted.live == (4, 1)
    assert tables.available == before
    assert tables.admit(2, TOKENS[:17], "") == 16
    held = tables.holding(2, 16)
    assert (held.listed, held.live) == (wanted.listed, wanted.live)
    assert before - tables.available == wanted.brings == 5


def test_without_a_cache_pages_are_free_at_once() -> None:
    tables = make(cache=False)
    started(tables, 1, 11)
    assert tables.hit(TOKENS, "").computed == 0
    tables.release(1)
    assert tables.pool.num_free == 32
    tables.clear_cache()
    tables.check()


# ---- windows ----


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(("window", "size"), [(1, 4), (7, 4), (8, 4), (9, 4), (5, 1), (20, 8)])
def test_a_long_sequence_keeps_a_bounded_number_of_pages(window: int, size: int, cache: bool) -> None:
    """Those that the newest query's window touches, and one token of slack."""
    tables = make(pages=-(-(window + 1) // size) + 2, windows=(window,), sizes=(size,), cache=cache)
    tables.admit(1, TOKENS, "")
    for p in range(90):
        run(tables, 1, p, p + 1)
        pages = tables.live_pages(1, 0)
        needed = {position // size for position in range(max(0, p + 1 - window), p + 1)}
        assert {i for i, page in enumerate(pages) if page != FREED} == needed
    assert tables.holding(1, 90).listed == (-(-90 // size),)


def test_each_group_has_its_own_window() -> None:
    tables = make(windows=(None, 4, 10), sizes=(4, 4, 4))
    started(tables, 1, 40)
    assert [len(live(tables, 1, group)) for group in range(3)] == [10, 1, 3]


def test_a_hit_brings_only_the_pages_in_the_window() -> None:
    tables = make(windows=(4,), sizes=(2,))
    tables.admit(1, TOKENS, "")
    run(tables, 1, 0, 12)
    tables.release(1)
    assert tables.admit(2, TOKENS[:13], "") == 12
    assert [page == FREED for page in tables.live_pages(2, 0)] == [True] * 4 + [False] * 2
    assert tables.admit(3, TOKENS[:9], "") == 8, "pages behind the window stay cached until they are needed"


# ---- forks ----


def test_a_fork_lists_its_parents_pages_and_copies_what_it_writes() -> None:
    tables = make()
    started(tables, 1, 6)
    free = tables.pool.num_free
    tables.share(1, 2, 6)
    assert tables.live_pages(2, 0) == tables.live_pages(1, 0) and tables.pool.num_free == free
    assert tables.holding(2, 6).copies == tables.holding(1, 6).copies == 1
    parent = list(tables.live_pages(1, 0))
    run(tables, 2, 6, 7, TOKENS[:6] + [0] * 9)
    assert tables.live_pages(1, 0) == parent and tables.live_pages(2, 0)[0] == parent[0]
    assert tables.live_pages(2, 0)[1] != parent[1]
    assert marks(tables, parent[1], 3)[:2] == [1, 1] and marks(tables, parent[1], 3)[2] == 0xFF
    assert marks(tables, tables.live_pages(2, 0)[1], 3) == [1, 1, 2]
    assert tables.holding(1, 6).copies == 0, "the page is the parent's own again"
    run(tables, 1, 6, 7)
    assert tables.live_pages(1, 0) == parent


def test_whoever_writes_first_copies() -> None:
    tables = make()
    started(tables, 1, 6)
    tables.share(1, 2, 6)
    child = list(tables.live_pages(2, 0))
    run(tables, 1, 6, 8)
    assert tables.live_pages(2, 0) == child and tables.live_pages(1, 0)[1] != child[1]
    assert marks(tables, child[1], 4) == [1, 1, 0xFF, 0xFF]


def test_a_fork_that_runs_the_last_token_again_copies_the_cached_page() -> None:
    tables = make()
    started(tables, 1, 8)
    tables.share(1, 2, 7)
    assert tables.holding(2, 7).copies == 1 and tables.holding(1, 8).copies == 0
    run(tables, 2, 7, 8)
    assert tables.live_pages(2, 0) == tables.live_pages(1, 0), (
        "its copy equals the tree's, which it takes back"
    )


def test_a_fork_lists_no_more_than_is_computed() -> None:
    tables = make()
    tables.admit(1, TOKENS, "")
    run(tables, 1, 0, 5)
    tables.reserve(1, 5, 20)
    tables.share(1, 2, 5)
    assert len(tables.live_pages(2, 0)) == 2 and len(tables.live_pages(1, 0)) == 5
    tables.check()


def test_a_fork_keeps_what_its_parent_lets_go() -> None:
    tables = make(windows=(4,), cache=False)
    started(tables, 1, 8)
    tables.share(1, 2, 8)
    run(tables, 1, 8, 16)
    assert len(live(tables, 2)) == 1
    tables.release(1)
    tables.check()
    tables.release(2)
    assert tables.pool.num_free == 32


def test_freed_by_counts_pages_that_nobody_else_holds() -> None:
    tables = make()
    started(tables, 1, 9)
    started(tables, 2, 9)
    tables.share(2, 3, 9)
    assert tables.freed_by([]) == 0
    assert tables.freed_by([1]) == 1, "its last page; the granules are held by 2 and 3 as well"
    assert tables.freed_by([2]) == 0 and tables.freed_by([2, 3]) == 1
    assert tables.freed_by([1, 2, 3]) == 4
    before = tables.available
    for seq in (1, 2, 3):
        tables.release(seq)
    assert tables.available - before == 4


# ---- swap ----


def test_swapping_moves_the_bytes_there_and_back() -> None:
    tables = make(pages=4, windows=(5,), host=8, cache=False)
    started(tables, 1, 14)
    shape = [page == FREED for page in tables.live_pages(1, 0)]
    assert shape == [True, True, False, False]
    tables.swap_out(1)
    tables.check()
    assert not tables.holds(1) and tables.pool.num_free == 4
    assert tables.swapped_holding(1, 14).live == (2,) and tables.swapped_holding(1, 14).brings == 2
    started(tables, 2, 9, [0] * 20)
    tables.release(2)
    tables.swap_in(1, "")
    tables.check()
    assert [page == FREED for page in tables.live_pages(1, 0)] == shape
    assert [marks(tables, page, 4) for page in live(tables, 1)] == [[1] * 4, [1, 1, 0xFF, 0xFF]]
    assert tables.host is not None and tables.host.num_free == 8


def test_what_comes_back_joins_the_tree_again() -> None:
    tables = make(host=8)
    started(tables, 1, 9)
    tables.swap_out(1)
    tables.clear_cache()
    tables.swap_in(1, "")
    assert tables.hit(TOKENS[:9], "").computed == 0
    run(tables, 1, 9, 10)
    assert tables.hit(TOKENS[:9], "").computed == 8
    tables.swap_out(1)
    started(tables, 2, 9)
    tables.swap_in(1, "")
    run(tables, 1, 10, 11)
    assert live(tables, 1)[:2] == live(tables, 2)[:2], "one copy is enough"


def test_coming_back_evicts_cached_pages() -> None:
    tables = make(pages=3, host=8)
    started(tables, 1, 9)
    tables.swap_out(1)
    started(tables, 2, 12, [0] * 20)
    tables.release(2)
    assert tables.pool.num_free == 0
    tables.swap_in(1, "")
    tables.check()
    assert len(live(tables, 1)) == 3


def test_a_swapped_fork_leaves_its_parents_pages_alone() -> None:
    tables = make(host=8)
    started(tables, 1, 6)
    tables.share(1, 2, 6)
    parent = list(tables.live_pages(1, 0))
    tables.swap_out(2)
    tables.check()
    assert tables.live_pages(1, 0) == parent and marks(tables, parent[0], 4) == [1] * 4
    tables.release(2)
    assert tables.host is not None and tables.host.num_free == 8
    tables.check()


def test_a_swap_that_does_not_fit_changes_nothing() -> None:
    tables = make(host=2)
    started(tables, 1, 9)
    with pytest.raises(OutOfPages):
        tables.swap_out(1)
    tables.check()
    assert tables.holds(1) and len(live(tables, 1)) == 3


# ---- the end ----


@pytest.mark.parametrize("cache", [True, False])
def test_a_text_that_goes_on_in_another_way_lets_go_of_its_end(cache: bool) -> None:
    tables = make(cache=cache)
    started(tables, 1, 14)
    before, free = live(tables, 1), tables.pool.num_free
    tables.rewind(1, 6)
    tables.check()
    assert live(tables, 1) == before[:2], "six of sixteen positions lie in two of four pages"
    assert tables.pool.num_free + tables.pool.num_evictable == free + 2
    other = [*TOKENS[:6], *range(900, 920)]
    run(tables, 1, 6, 13, other)
    after = live(tables, 1)
    assert after[0] == before[0] and len(after) == 4
    assert (after[1] == before[1]) is not cache, "what is cached is not written: it is copied"
    tables.release(1)
    if cache:
        assert tables.hit(TOKENS, "").computed == 12 and tables.hit(other, "").computed == 12, "both are kept"


def test_release_is_harmless_and_complete() -> None:
    tables = make(windows=(None, 4), sizes=(4, 8), host=8)
    tables.release(7)
    for seq in (1, 2, 3):
        started(tables, seq, 20 + seq)
    tables.share(2, 4, 22)
    tables.swap_out(3)
    for seq in (1, 2, 3, 4):
        tables.release(seq)
        tables.release(seq)
        tables.check()
    assert tables.available == 32
    tables.clear_cache()
    tables.check()
    assert tables.pool.num_free == 32 and tables.host is not None and tables.host.num_free == 8


@pytest.mark.parametrize("corrupt", ["tip", "table", "both"])
def test_check_notices(corrupt: str) -> None:
    tables = make(host=8)
    started(tables, 1, 9)
    if corrupt == "tip":
        tables._tips[1].tips += 1
    elif corrupt == "table":
        tables._tips.pop(1)
    else:
        tables._swapped[1] = [[]]
    with pytest.raises(AssertionError):
        tables.check()


# ---- branches ----


@pytest.mark.parametrize("length", [8, 9, 11])
def test_branches_take_what_they_said_and_give_it_back(length: int) -> None:
    """Pages of four tokens; one group keeps a window."""
    tables = make(windows=(None, 6), sizes=(4, 2))
    started(tables, 1, length - 1)
    tables.reserve(1, length - 1, length + 3)
    free, ends = tables.pool.num_free, [length + 2, length + 5]
    missing = tables.missing_branches(length, ends)
    tables.branch(1, length, ends)
    assert free - tables.pool.num_free == missing
    tables_of = [[tables.live_pages(table, group) for group in (0, 1)] for table in tables.branches(1)]
    for group, size in enumerate((4, 2)):
        lists = [pages[group] for pages in tables_of]
        assert len({tuple(pages[: length // size]) for pages in lists}) == 1, "what came before is shared"
        written = [page for pages in lists for page in pages[length // size :]]
        assert len(set(written)) == len(written), "what is guessed is not"
    kept = [list(pages) for pages in tables_of[2]]
    tables.settle(1, 2)
    assert [tables.live_pages(1, group) for group in (0, 1)] == kept
    tables.advance(1, TOKENS, length + 5)
    tables.check()
    tables.release(1)
    tables.clear_cache()
    assert tables.pool.num_free == len(tables.pool)


def test_a_sequence_that_goes_takes_its_branches_along() -> None:
    tables = make()
    started(tables, 1, 9)
    tables.reserve(1, 9, 12)
    tables.branch(1, 10, [12, 14])
    tables.release(1)
    tables.check()
    assert tables.available == len(tables.pool)
