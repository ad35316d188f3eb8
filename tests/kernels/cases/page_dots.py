"""Inputs for the contract suite: page_dots."""

from collections.abc import Iterator

import torch

from headrace.kernels.page_dots import PageVectors, dots, reference
from tests.kernels.case import Case

SAME_BITS_ON_EVERY_LEVEL = True
OF_LARGEST = 2e-6
ARGUMENTS = ("q", "arena", "store", "tables", "row_tables", "row_counts")


def run(case: Case) -> torch.Tensor:
    return dots(*(case[name] for name in ARGUMENTS))


def run_reference(case: Case) -> torch.Tensor:
    return reference.dots(*(case[name] for name in ARGUMENTS))


def cases() -> Iterator[Case]:
    yield _case("one-row", 1, heads=8, kv_heads=2, size=128, pages=70)
    yield _case("no-rows", 0, heads=4, kv_heads=1, size=16, pages=5)
    yield _case("three-heads-share-one", 3, heads=6, kv_heads=2, size=32, pages=33)
    yield _case("five-heads-share-one", 2, heads=5, kv_heads=1, size=48, pages=9, count=3)
    yield _case("two-vectors-of-a-page", 5, heads=8, kv_heads=4, size=48, pages=40, count=2)
    yield _case("odd-size", 4, heads=4, kv_heads=2, size=10, pages=7)
    yield _case("float64", 4, heads=4, kv_heads=2, size=16, pages=7, dtype=torch.float64)
    yield _case("one-page", 2, heads=2, kv_heads=2, size=16, pages=1)


def _case(
    name: str,
    rows: int,
    *,
    heads: int,
    kv_heads: int,
    size: int,
    pages: int,
    count: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Two tables over one arena, in no order; rows that may read all of theirs, none of it, or a part."""
    random = torch.Generator().manual_seed(rows + size)
    store = PageVectors(64, kv_heads, count, size)
    arena = torch.zeros(2 * pages + 1, 64 + -(-store.nbytes // 64) * 64, dtype=torch.uint8)
    vectors = torch.randn(len(arena), kv_heads, count, size, generator=random)
    store.views(arena).copy_(vectors)
    tables = torch.randperm(2 * pages, generator=random).view(2, pages)
    row_tables = torch.randint(0, 2, (rows,), generator=random)
    row_counts = torch.randint(0, pages + 1, (rows,), generator=random)
    row_counts[:1] = pages
    arguments = {
        "q": torch.randn(rows, heads, size, generator=random, dtype=dtype),
        "arena": arena,
        "store": store,
        "tables": tables,
        "row_tables": row_tables,
        "row_counts": row_counts,
    }
    return Case(name, arguments, by_row=("q", "row_tables", "row_counts"))
