"""PrefixTree: what is found, what is kept, and what goes first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from headrace.kv import prefix
from headrace.kv.pool import PagePool
from headrace.kv.prefix import Node, PrefixTree

SECRET = b"s" * 32
CPU = torch.device("cpu")


def make(
    pages: int = 16, granule: int = 2, windows: Sequence[int | None] = (None,), **options: str
) -> PrefixTree:
    fingerprint = options.get("fingerprint", "stack")
    return PrefixTree(PagePool(pages, 64, CPU), granule, windows, fingerprint, secret=SECRET)


def grow(tree: PrefixTree, tokens: Sequence[int], salt: str = "", windows: int = 1) -> list[Node]:
    """A sequence computes `tokens` and ends: its granules, with a page per group, are left to the tree."""
    node, path, held = tree.root(salt), [], []
    tree.hang(node)
    for start in range(0, len(tokens) - tree.granule + 1, tree.granule):
        pages = [(tree._pool.take(),) for _ in range(windows)]
        held += [page for (page,) in pages]
        child = tree.extend(node, tokens[start : start + tree.granule], list(pages))
        tree.hang(child)
        tree.release(node)
        node = child
        path.append(child)
    for page in held:
        tree._pool.drop(page)
    tree.touch(node)
    tree.release(node)
    tree.check()
    return path


def found(tree: PrefixTree, tokens: Sequence[int], salt: str = "", limit: int | None = None) -> int:
    """Granules that match."""
    return len(tree.match(tokens, salt, len(tokens) if limit is None else limit))


def test_match_finds_the_longest_prefix_in_whole_granules() -> None:
    tree = make()
    path = grow(tree, [1, 2, 3, 4, 5, 6])
    assert tree.match([1, 2, 3, 4, 5, 6], "", 6) == path
    assert tree.match([1, 2, 3, 4, 9, 6], "", 6) == path[:2]
    assert found(tree, [1, 2, 3]) == 1 and found(tree, [1]) == 0 and found(tree, []) == 0
    assert found(tree, [2, 1, 3, 4]) == 0
    assert found(tree, [3, 4]) == 0, "a granule is known by everything before it"
    assert [node.depth for node in path] == [1, 2, 3]


def test_match_leaves_what_the_limit_leaves() -> None:
    tree = make()
    grow(tree, [1, 2, 3, 4])
    assert [found(tree, [1, 2, 3, 4], limit=limit) for limit in range(-1, 5)] == [0, 0, 0, 1, 1, 2]


def test_match_changes_nothing() -> None:
    tree = make(pages=2)
    grow(tree, [1, 2])
    grow(tree, [3, 4])
    found(tree, [1, 2])
    assert tree.evict(1) == 1
    assert found(tree, [1, 2]) == 0 and found(tree, [3, 4]) == 1, "looking is not using"


def test_branches_share_what_they_have_in_common() -> None:
    tree = make()
    first, second = grow(tree, [1, 2, 3, 4]), None
    pages = [tree._pool.take(), tree._pool.take()]
    node = tree.extend(tree.root(""), [1, 2], [(pages[0],)])
    assert node is first[0] and node.pages[0] != (pages[0],), "an existing node keeps its own pages"
    second = tree.extend(node, [5, 6], [(pages[1],)])
    assert second.parent is first[0] and first[0].children == 2
    assert not tree._pool.is_cached(pages[0]) and tree._pool.is_cached(pages[1])


def test_tenants_do_not_see_each_other() -> None:
    tree = make()
    grow(tree, [1, 2, 3, 4], salt="alice")
    assert found(tree, [1, 2, 3, 4], salt="alice") == 2
    assert found(tree, [1, 2, 3, 4], salt="bob") == 0 and found(tree, [1, 2, 3, 4]) == 0


def test_keys_depend_on_stack_tenant_tokens_and_secret() -> None:
    def key(
        fingerprint: str = "stack", salt: str = "", tokens: Sequence[int] = (1, 2), secret: bytes = SECRET
    ) -> bytes:
        tree = PrefixTree(PagePool(4, 64, CPU), 2, (None,), fingerprint, secret=secret)
        return tree.extend(tree.root(salt), tokens, [(tree._pool.take(),)]).key

    keys = [key(), key("other"), key(salt="x"), key(tokens=(1, 3)), key(tokens=(2, 1)), key(secret=b"t" * 32)]
    assert len(set(keys)) == len(keys) and key() == keys[0]
    assert key("sta", "ck") != key("stack", ""), "fingerprint and salt run into each other"


def test_secrets_are_drawn_anew() -> None:
    one, two = (PrefixTree(PagePool(1, 64, CPU), 2, (None,), "stack") for _ in range(2))
    assert one.root("").key != two.root("").key


def test_eviction_takes_the_oldest_path_and_its_deepest_granule_first() -> None:
    tree = make()
    grow(tree, [1, 2, 3, 4])
    grow(tree, [5, 6, 7, 8])
    grow(tree, [1, 2, 9, 9])
    order = []
    probes = {"3,4": [1, 2, 3, 4], "7,8": [5, 6, 7, 8], "5,6": [5, 6], "9,9": [1, 2, 9, 9], "1,2": [1, 2]}
    alive = set(probes)
    while tree._pool.num_evictable:
        assert tree.evict(1) == 1
        tree.check()
        now = {name for name, tokens in probes.items() if found(tree, tokens) == len(tokens) // 2}
        order += sorted(alive - now)
        alive = now
    assert order == ["3,4", "7,8", "5,6", "9,9", "1,2"]
    assert not tree.pages() and tree._pool.num_free == 16


def test_touch_makes_a_path_the_last_to_go() -> None:
    tree = make()
    old = grow(tree, [1, 2, 3, 4])
    grow(tree, [5, 6])
    tree.touch(old[-1])
    tree.evict(1)
    assert found(tree, [1, 2, 3, 4]) == 2 and found(tree, [5, 6]) == 0


def test_pages_that_somebody_holds_are_never_evicted() -> None:
    tree = make()
    path = grow(tree, [1, 2, 3, 4])
    (page,) = path[0].pages[0] or ()
    tree._pool.hold(page)
    assert tree.evict(99) == 1
    assert found(tree, [1, 2]) == 1 and found(tree, [1, 2, 3, 4]) == 1
    tree.check()
    tree._pool.drop(page)
    assert tree.evict(99) == 1 and found(tree, [1, 2]) == 0


def test_a_tip_stays_though_its_pages_are_gone() -> None:
    tree = make()
    path = grow(tree, [1, 2])
    tree.hang(path[0])
    tree.clear()
    tree.check()
    assert found(tree, [1, 2]) == 0
    node = tree.extend(path[0], [3, 4], [(tree._pool.take(),)])
    assert node.parent is path[0] and tree.extend(tree.root(""), [1, 2], [None]) is path[0]
    tree.hang(node)
    tree.release(path[0])
    assert found(tree, [1, 2, 3, 4]) == 0, "the granule before is missing"
    assert tree.extend(tree.root(""), [1, 2], [(tree._pool.take(),)]) is path[0], "given-up pages come back"
    assert found(tree, [1, 2, 3, 4]) == 2


def test_clear_forgets_everything_that_nobody_holds() -> None:
    tree = make()
    grow(tree, [1, 2, 3, 4])
    grow(tree, [1, 2, 5, 6], salt="x")
    tree.clear()
    tree.check()
    assert not tree.pages() and not tree._nodes and tree._pool.num_free == 16
    assert tree.evict(5) == 0


def test_with_a_window_only_what_the_next_query_reads_must_be_there() -> None:
    """Granules of 2, window 4: resuming at token 2d needs granules from d - 2 on in the window's group."""
    tree = make(windows=(None, 4))
    tokens = [1, 2, 3, 4, 5, 6, 7, 8]
    path = grow(tree, tokens, windows=2)
    assert [tree.first_needed(0, depth) for depth in range(5)] == [0, 0, 0, 0, 0]
    assert [tree.first_needed(1, depth) for depth in range(5)] == [0, 0, 0, 1, 2]
    lose(tree, path[0], 1)
    assert found(tree, tokens) == 4, "out of the window"
    assert found(tree, tokens[:4]) == 0, "a shorter hit would read it"
    assert found(tree, tokens[:6]) == 3
    lose(tree, path[2], 1)
    assert found(tree, tokens) == 0
    lose(tree, path[1], 0)
    assert found(tree, tokens) == 0


@pytest.mark.parametrize(
    ("window", "first"),
    [(1, [0, 0, 1, 2, 3]), (2, [0, 0, 1, 2, 3]), (3, [0, 0, 0, 1, 2]), (5, [0, 0, 0, 0, 1])],
)
def test_a_window_has_one_token_of_slack(window: int, first: list[int]) -> None:
    """The newest token of a prompt runs again in each further sample: it reads one position further back."""
    tree = make(windows=(window,))
    assert [tree.first_needed(0, depth) for depth in range(5)] == first


def test_without_a_window_every_granule_must_be_there() -> None:
    tree = make(windows=(None, 4))
    tokens = [1, 2, 3, 4, 5, 6, 7, 8]
    path = grow(tree, tokens, windows=2)
    lose(tree, path[3], 0)
    assert found(tree, tokens) == 3
    lose(tree, path[0], 0)
    assert found(tree, tokens) == 0


def lose(tree: PrefixTree, node: Node, group: int) -> None:
    """One group of a node is given up, as eviction does when the others are held."""
    for page in node.pages[group] or ():
        tree._pool.uncache(page)
    node.pages[group] = None


def test_a_granule_leaves_the_tree_whole() -> None:
    """One page of a granule is evictable, the other is held: the held one leaves the tree and stays with its holder."""
    tree = make(granule=4)
    pool = tree._pool
    pages = (pool.take(), pool.take())
    tree.extend(tree.root(""), [1, 2, 3, 4], [pages])
    pool.drop(pages[0])
    assert tree.evict(1) == 1
    assert not pool.is_cached(pages[1]) and pool.count(pages[1]) == 1
    assert not tree.pages()
    tree.check()


def test_a_forgotten_node_does_not_take_its_successor_with_it() -> None:
    """A granule whose pages were never offered is forgotten with its last child, and later comes back with pages."""
    tree = make(windows=(4,))
    pool, root = tree._pool, tree.root("")
    empty = tree.extend(root, [1, 2], [None])
    page = pool.take()
    node = tree.extend(empty, [3, 4], [(page,)])
    tree.hang(node)
    pool.drop(page)
    tree.touch(node)
    tree.release(node)
    assert tree.evict(1) == 1 and not tree._nodes
    grow(tree, [1, 2])
    assert pool.num_evictable == 1
    assert tree.evict(1) == 1, "the page that the tree lists could not be evicted"
    tree.check()
    pool.check({}, tree.pages())


def test_books_do_not_grow_with_every_use() -> None:
    """The same prompt comes again and again, and the pool never fills up."""
    tree = make(pages=64)
    path = grow(tree, list(range(40)))
    for _ in range(2000):
        tree.touch(path[-1])
    assert len(tree._ages) < 50 * len(path)


def test_roots_of_gone_tenants_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "MAX_SALTS", 4)
    tree = make(pages=64)
    grow(tree, [1, 2], salt="kept")
    hung = tree.root("hung")
    tree.hang(hung)
    for i in range(50):
        tree.root(f"tenant{i}")
    assert len(tree._roots) <= 5
    assert tree.root("hung") is hung and found(tree, [1, 2], salt="kept") == 1
    tree.check()
