"""Inputs for the contract suite: paged_attention."""

import dataclasses
from collections.abc import Iterator

import torch

from headrace.kernels.attention import Queries
from headrace.kernels.paged_attention import PageStore, attend, write
from headrace.types import Reads, Run
from tests.kernels.case import Case

SAME_BITS_ON_EVERY_LEVEL = True
REFERENCE_ROWS_VARY = True
OF_LARGEST = 2e-6
"""The reference sums in another order, and uses another exponential."""


def run(case: Case) -> torch.Tensor:
    """Out and lse side by side; rows that only the case's `rows` select are run alone."""
    reads = _clip(case["reads"], case["row"])
    queries = Queries(case["q"], case["positions"], case["scale"], case["window"], case["sink"])
    state = attend(queries, case["arena"], case["store"], reads)
    lse = state.lse_TN.clamp_min(-1e4)  # minus infinity, where a row reads nothing
    return torch.cat([state.out_TNH.flatten(1), lse], dim=1)


run_reference = run  # the suite forces the level


def cases() -> Iterator[Case]:
    yield _case("no-rows", [])
    yield _case("one-row", [(40, 1)])
    yield _case("first-token", [(0, 1)])
    yield _case("513-rows", [(3, 513)], heads=2, kv_heads=1, head_size=16)
    yield _case("whole-prompt", [(0, 37)])
    yield _case("chunk-and-decodes", [(300, 1), (16, 50), (0, 3), (511, 1)])
    yield _case("long", [(590, 3)])
    yield _case("window", [(300, 1), (16, 50), (0, 3)], window=20)
    yield _case("sink", [(300, 1), (16, 50), (0, 3)], window=20, sink=4)
    yield _case("sink-of-blocks", [(300, 1), (16, 50), (400, 9)], window=20, sink=37)
    yield _case("sink-and-segments", [(2500, 1), (1020, 9), (1900, 70)], window=300, sink=20)
    yield _case("sink-int8", [(300, 1), (40, 90)], stored=torch.int8, window=33, sink=5)
    yield _case("holes", [(300, 2), (100, 3)], holes=True)
    yield _case("holes-and-window", [(300, 2), (100, 3)], holes=True, window=150)
    yield _case("segments", [(2500, 1), (1020, 9), (5, 3), (2047, 2)])
    yield _case("segments-and-window", [(2500, 1), (1020, 9), (1900, 70)], window=1100)
    yield _case("segments-of-few-heads", [(0, 1300)], heads=2, kv_heads=1, head_size=16)
    yield _case("segments-int8", [(2500, 1), (1000, 100)], stored=torch.int8, holes=True)
    yield _case("many-rows-bf16", [(40, 90), (2000, 1)], stored=torch.bfloat16)
    yield _case("many-rows-int8-window", [(40, 90), (2000, 1)], stored=torch.int8, window=33)
    shared = [(2200, 1), (2500, 2), (2047, 1), (1500, 1), (900, 1), (2300, 3), (2210, 1)]
    yield _case("shared", shared, shared=2048)
    yield _case("shared-more-than-a-tile", [(2100 + i, 2) for i in range(10)], shared=2048)
    yield _case("shared-window", shared, shared=2048, window=1300, sink=40)
    yield _case("shared-holes", shared, shared=2048, holes=True)
    yield _case("shared-int8-pages-of-48", shared, shared=2016, stored=torch.int8, page_tokens=48)
    yield _case("shared-bf16-few-heads", shared, shared=2048, stored=torch.bfloat16, heads=2, kv_heads=1)
    yield _case("bf16", [(300, 1), (16, 50)], stored=torch.bfloat16)
    yield _case("int8", [(300, 1), (16, 50)], stored=torch.int8)
    yield _case("int8-window-holes", [(300, 2), (16, 50)], stored=torch.int8, window=150, holes=True)
    yield _case("int8-head-of-96", [(70, 5)], stored=torch.int8, head_size=96, page_tokens=64)
    yield _case("one-head-each", [(70, 5)], heads=3, kv_heads=3)
    yield _case("six-heads-share", [(70, 5)], heads=12, kv_heads=2)
    yield _case("one-kv-head", [(70, 5)], heads=7, kv_heads=1)
    yield _case("head-of-96", [(70, 5)], head_size=96)
    yield _case("head-of-128", [(70, 5)], head_size=128)
    yield _case("head-of-16", [(70, 5)], head_size=16)
    yield _case("heads-apart", [(300, 1), (16, 50)], apart=64)
    yield _case("heads-apart-int8", [(300, 1), (16, 50)], apart=0, stored=torch.int8, heads=9, kv_heads=3)
    yield _case("heads-apart-bf16", shared, apart=192, shared=2048, stored=torch.bfloat16)
    yield _case("pages-of-64", [(300, 1), (16, 50)], page_tokens=64)
    yield _case("odd-head", [(70, 5)], head_size=24)
    yield _case("pages-of-5", [(70, 5)], page_tokens=5)
    yield _case("float64", [(70, 5)], dtype=torch.float64)


def _case(
    name: str,
    spans: list[tuple[int, int]],
    *,
    heads: int = 8,
    kv_heads: int = 2,
    head_size: int = 32,
    page_tokens: int = 16,
    window: int | None = None,
    sink: int = 0,
    holes: bool = False,
    shared: int = 0,
    stored: torch.dtype = torch.float32,
    dtype: torch.dtype = torch.float32,
    apart: int | None = None,
) -> Case:
    """`spans`: (first position, rows) each, of sequences whose pages hold everything up to the last row.

    shared: tokens at the beginning, in whole pages, that every sequence takes from the first. apart: a head's values
    follow its keys, and so many bytes them.
    """
    random = torch.Generator().manual_seed(len(name))
    stored = dtype if dtype == torch.float64 and stored == torch.float32 else stored
    store = PageStore(64, 64, page_tokens, kv_heads, head_size, stored)
    half, head = store.nbytes, store.head_bytes
    store = dataclasses.replace(store, v_at=64 + half)
    if apart is not None:
        store = dataclasses.replace(store, v_at=64 + head, head_stride=2 * head + apart)
        half += kv_heads * apart
    pages, runs, positions, row = [], [], [], 0
    free = torch.randperm(6000 // page_tokens, generator=random).tolist()
    arena = torch.full(
        (len(free), 64 + 2 * half + 64), 0xFF, dtype=torch.uint8
    )  # NaN where nothing is written
    common: list[int] = []
    for start, count in spans:
        mine = common[: -(-(start + count) // page_tokens)]
        mine = mine + [free.pop() for _ in range(-(-(start + count) // page_tokens) - len(mine))]
        if not common:
            common = mine[: shared // page_tokens]
        own = min(len(common) * page_tokens, start + count) if row else 0
        _fill(arena, store, mine, own, start + count, random, dtype)
        for first, last in _kept(len(mine), holes):
            length = min(start + count, last * page_tokens) - first * page_tokens
            runs.append(Run(row, row + count, len(pages), first * page_tokens, length))
            pages += mine[first:last]
        positions += range(start, start + count)
        row += count
    q = torch.randn(row, heads + 2, head_size, generator=random, dtype=torch.float64).to(dtype) * 2
    arguments = {
        "q": q[:, 1:-1],  # rows lie apart
        "arena": arena,
        "store": store,
        "reads": Reads(torch.tensor(pages, dtype=torch.int64), tuple(runs)),
        "positions": torch.tensor(positions, dtype=torch.int64),
        "scale": head_size**-0.5,
        "window": window,
        "sink": sink,
        "row": torch.arange(row),
    }
    return Case(name, arguments, by_row=("q", "positions", "row"))


def _fill(
    arena: torch.Tensor,
    store: PageStore,
    pages: list[int],
    start: int,
    stop: int,
    random: torch.Generator,
    dtype: torch.dtype,
) -> None:
    shape = (stop - start, store.kv_heads, store.head_size)
    k, v = (torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for _ in range(2))
    size = store.page_tokens
    slots = [pages[p // size] * size + p % size for p in range(start, stop)]
    write(arena, store, k, v, torch.tensor(slots, dtype=torch.int64))


def _kept(count: int, holes: bool) -> list[tuple[int, int]]:
    """Page ranges that are still there."""
    return [(0, 1), (2, 4), (count - 1, count)] if holes else [(0, count)]


def _clip(reads: Reads, row: torch.Tensor) -> Reads:
    """The reads of consecutive rows only, numbered from the first of them."""
    if not len(row):
        return Reads(reads.pages_B, ())
    first, end = int(row[0]), int(row[-1]) + 1
    runs = [
        run._replace(first_row=max(run.first_row, first) - first, end_row=min(run.end_row, end) - first)
        for run in reads.runs
        if run.first_row < end and run.end_row > first
    ]
    return Reads(reads.pages_B, tuple(runs))
