"""PagePool: every arrow of its picture, and a check() that notices each way of getting it wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from headrace.errors import OutOfPages
from headrace.kv.pool import FREED, POISON, PagePool


def pool(pages: int = 4, poison: bool = True) -> PagePool:
    return PagePool(pages, 64, torch.device("cpu"), poison)


def test_a_fresh_pool_is_free_and_poisoned() -> None:
    made = pool()
    assert len(made) == made.num_free == 4 and made.num_evictable == 0
    assert bool((made.arena_PX == POISON).all())
    assert bool(made.arena_PX.view(torch.bfloat16).isnan().all())
    made.check({}, [])


def test_take_gives_each_page_once_and_then_raises() -> None:
    made = pool()
    pages = [made.take() for _ in range(4)]
    assert sorted(pages) == [0, 1, 2, 3] and made.num_free == 0
    assert all(made.count(page) == 1 and not made.is_shared(page) for page in pages)
    with pytest.raises(OutOfPages):
        made.take()
    made.check({1: [pages]}, [])


def test_the_last_drop_frees_and_poisons() -> None:
    made = pool()
    page = made.take()
    made.hold(page)
    made.arena_PX[page] = 0
    assert made.count(page) == 2 and made.is_shared(page)
    made.drop(page)
    assert made.num_free == 3 and bool((made.arena_PX[page] == 0).all()), "a held page was touched"
    made.drop(page)
    assert made.num_free == 4 and bool((made.arena_PX[page] == POISON).all())


def test_without_poison_bytes_stay() -> None:
    made = pool(poison=False)
    page = made.take()
    made.arena_PX[page] = 1
    made.drop(page)
    assert bool((made.arena_PX[page] == 1).all())


def test_a_cached_page_is_evictable_once_nobody_holds_it() -> None:
    made = pool()
    page = made.take()
    made.arena_PX[page] = 0
    made.cache(page)
    assert made.is_cached(page) and made.is_shared(page) and not made.is_evictable(page)
    made.drop(page)
    assert made.is_evictable(page) and made.num_evictable == 1 and made.num_free == 3
    made.check({}, [page])
    made.hold(page)
    assert not made.is_evictable(page) and made.num_evictable == 0
    assert bool((made.arena_PX[page] == 0).all()), "a cached page lost its bytes"
    made.drop(page)
    made.uncache(page)
    assert made.num_evictable == 0 and made.num_free == 4
    assert bool((made.arena_PX[page] == POISON).all())
    made.check({}, [])


def test_leaving_the_tree_does_not_take_a_page_from_its_holder() -> None:
    made = pool()
    page = made.take()
    made.cache(page)
    made.uncache(page)
    assert made.count(page) == 1 and not made.is_shared(page) and made.num_free == 3
    made.check({1: [[page]]}, [])


def test_copy_moves_all_bytes_of_one_page_only() -> None:
    made = pool()
    source, target = made.take(), made.take()
    made.arena_PX[source] = torch.arange(64, dtype=torch.uint8)
    before = made.arena_PX.clone()
    made.copy(source, target)
    assert torch.equal(made.arena_PX[target], before[source])
    before[target] = before[source]
    assert torch.equal(made.arena_PX, before)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda made, free, held, cached: made.hold(free),
        lambda made, free, held, cached: made.drop(free),
        lambda made, free, held, cached: made.drop(cached),
        lambda made, free, held, cached: made.cache(free),
        lambda made, free, held, cached: made.cache(cached),
        lambda made, free, held, cached: made.uncache(held),
    ],
    ids=["hold-free", "drop-free", "drop-unheld", "cache-free", "cache-twice", "uncache-uncached"],
)
def test_arrows_that_do_not_exist_are_refused(misuse: Callable[[PagePool, int, int, int], None]) -> None:
    made = pool()
    held, cached = made.take(), made.take()
    made.cache(cached)
    made.drop(cached)
    free = next(page for page in range(4) if page not in (held, cached))
    with pytest.raises(AssertionError):
        misuse(made, free, held, cached)
    made.check({1: [[held]]}, [cached])


def in_use() -> tuple[PagePool, dict[int, list[list[int]]], list[int]]:
    """A pool with a held page, a shared one, an evictable one and free ones; its tables and its tree."""
    made = pool(8)
    held, shared, cached = made.take(), made.take(), made.take()
    made.hold(shared)
    made.cache(cached)
    made.drop(cached)
    made.arena_PX[[held, shared, cached]] = 0
    return made, {1: [[held, FREED], [shared]], 2: [[shared], []]}, [cached]


def test_check_passes_on_a_pool_in_order() -> None:
    made, tables, tree = in_use()
    made.check(tables, tree)


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (lambda made, tables, tree: tables[2].__setitem__(0, []), "count"),
        (lambda made, tables, tree: tables[1][0].append(tables[1][0][0]), "count"),
        (lambda made, tables, tree: made.hold(tables[1][0][0]), "count"),
        (lambda made, tables, tree: tree.append(tree[0]), "twice"),
        (lambda made, tables, tree: tree.clear(), "disagree"),
        (lambda made, tables, tree: tree.append(tables[1][0][0]), "disagree"),
        (lambda made, tables, tree: made._free.pop(), "free list"),
        (lambda made, tables, tree: made._free.append(made._free[0]), "free list"),
        (lambda made, tables, tree: made._free.append(tree[0]), "free list"),
        (lambda made, tables, tree: setattr(made, "_evictable", 0), "evictable"),
        (lambda made, tables, tree: made.arena_PX[sorted(made._free)[0]].zero_(), "written"),
    ],
    ids=[
        "table-forgot-a-page",
        "listed-twice",
        "counted-twice",
        "cached-twice",
        "tree-forgot-a-page",
        "tree-made-one-up",
        "page-lost",
        "page-free-twice",
        "evictable-page-free",
        "evictable-miscounted",
        "free-page-written",
    ],
)
def test_check_notices(corrupt: Callable[..., object], message: str) -> None:
    made, tables, tree = in_use()
    corrupt(made, tables, tree)
    with pytest.raises(AssertionError, match=message):
        made.check(tables, tree)
