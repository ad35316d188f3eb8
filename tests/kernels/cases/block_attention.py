"""Inputs for the contract suite: block_attention."""

from collections.abc import Iterator

import torch
from torch import Tensor

from headrace.kernels.attention import Queries
from headrace.kernels.block_attention import BlockStore, attend, write
from headrace.types import Reads, Run
from tests.kernels.case import Case

SAME_BITS_ON_EVERY_LEVEL = True
REFERENCE_ROWS_VARY = True
OF_LARGEST = 0.03
"""The reference multiplies in floating point what the kernels round to 8 bits."""
BLOCKS = 60


def run(case: Case) -> Tensor:
    """Out and lse side by side; rows that only the case's `rows` select are run alone."""
    reads = _clip(case["reads"], case["row"])
    queries = Queries(case["q"], case["positions"], case["scale"], case["window"], case["sink"])
    state = attend(queries, case["arena"], case["store"], reads)
    return torch.cat([state.out_TNH.flatten(1), state.lse_TN.clamp_min(-1e4) / 10], dim=1)


run_reference = run  # the suite forces the level


def cases() -> Iterator[Case]:
    yield _case("no-rows", [])
    yield _case("one-row", [(3, 1)])
    yield _case("nothing-yet", [(0, 2)])
    yield _case("some-and-nothing", [(0, 2), (2, 3), (0, 1), (5, 1)])
    yield _case("chunk-and-decodes", [(9, 1), (4, 50), (1, 3)])
    yield _case("many-rows", [(4, 90), (33, 1)])
    yield _case("segments", [(40, 1), (33, 3)])
    yield _case("segments-window", [(40, 1), (33, 3)], window=1500)
    yield _case("window", [(9, 1), (4, 50), (1, 3)], window=100)
    yield _case("sink", [(9, 1), (4, 50), (1, 3)], window=100, sink=5)
    yield _case("sink-segments", [(40, 1), (33, 3)], window=300, sink=70)
    yield _case("holes", [(30, 2), (9, 3)], holes=True)
    yield _case("holes-window", [(30, 2), (9, 3)], holes=True, window=300)
    yield _case("2-bits", [(9, 1), (4, 5)], bits=2)
    yield _case("2-bits-segments", [(40, 1), (33, 3)], bits=2, window=1500)
    yield _case("groups-of-32", [(9, 1), (4, 5)], group=32, channels=32)
    yield _case("groups-of-16", [(9, 1)], group=16, channels=16, block=32)
    yield _case("large-blocks", [(9, 1), (4, 5)], block=256)
    yield _case("pages-of-4-blocks", [(9, 1), (4, 5)], each=4)
    yield _case("head-of-32", [(9, 1), (4, 5)], head_size=32, channels=32)
    yield _case("head-of-128", [(9, 1), (4, 5)], head_size=128, channels=64)
    yield _case("three-groups-of-channels", [(9, 1), (4, 5)], head_size=96, channels=32)
    yield _case("one-head-each", [(9, 5)], heads=3, kv_heads=3)
    yield _case("seven-heads-share", [(9, 5)], heads=7, kv_heads=1)
    yield _case("large-channel", [(9, 1), (4, 5)], large=True)
    yield _case("odd-head", [(3, 2)], head_size=24, channels=8, block=16, group=16)
    yield _case("float64", [(3, 2)], dtype=torch.float64)


def _case(
    name: str,
    spans: list[tuple[int, int]],
    *,
    heads: int = 8,
    kv_heads: int = 2,
    head_size: int = 64,
    block: int = 64,
    group: int = 64,
    channels: int = 64,
    bits: int = 4,
    each: int = 1,
    window: int | None = None,
    sink: int = 0,
    holes: bool = False,
    large: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """`spans`: (whole blocks that its rows read, rows) each. each: blocks in a page."""
    random = torch.Generator().manual_seed(len(name))
    group, channels = min(group, block), min(channels, head_size)
    empty = BlockStore(64, 0, each * block, block, group, channels, kv_heads, head_size, bits)
    store = BlockStore(
        64, 64 + empty.nbytes + 64, each * block, block, group, channels, kv_heads, head_size, bits
    )
    free = torch.randperm(BLOCKS * 2 // each, generator=random).tolist()
    arena = torch.full((len(free), each * store.stride + 64), 0xFF, dtype=torch.uint8)  # NaN where nothing is
    pages, runs, positions, row = [], [], [], 0
    for blocks, count in spans:
        mine = [free.pop() for _ in range(-(-blocks // each))]
        if blocks:
            _fill(arena, store, mine, blocks * block, random, dtype, large)
        positions += range(blocks * block, blocks * block + count)
        found = 0
        for start, stop in _stretches(blocks, each, holes):
            run = Run(row, row + count, len(pages), start * block, (stop - start) * block)
            pages += mine[start // each : -(-stop // each)]
            runs.append(run)
            found += 1
        if not found:
            runs.append(Run(row, row + count, len(pages), 0, 0))
        row += count
    q = torch.randn(row, heads, head_size, generator=random, dtype=torch.float64).to(dtype)
    return Case(
        name,
        {
            "q": q,
            "positions": torch.tensor(positions, dtype=torch.int64),
            "row": torch.arange(row),
            "arena": arena,
            "store": store,
            "reads": Reads(torch.tensor(pages, dtype=torch.int64), tuple(runs)),
            "scale": head_size**-0.5,
            "window": window,
            "sink": sink,
        },
        by_row=("q", "positions", "row"),
    )


def _stretches(blocks: int, each: int, holes: bool) -> list[tuple[int, int]]:
    """[start, stop) of blocks that are there: all, or without the third page and the fourth last."""
    if not holes or blocks < 6:
        return [(0, blocks)] if blocks else []
    return [(0, 2 * each), (3 * each, blocks - 4), (blocks - 3, blocks)]


def _fill(
    arena: Tensor,
    store: BlockStore,
    pages: list[int],
    length: int,
    random: torch.Generator,
    dtype: torch.dtype,
    large: bool,
) -> None:
    shape = (length, store.kv_heads, store.head_size)
    k, v = (torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for _ in "kv")
    if large:
        k[..., 5] += 20
    size = store.page_tokens
    write(arena, store, k, v, torch.tensor([pages[t // size] * size + t % size for t in range(length)]))


def _clip(reads: Reads, rows: Tensor) -> Reads:
    """What these rows of the case read."""
    first, end = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
    runs = [
        Run(max(run.first_row, first) - first, min(run.end_row, end) - first, *run[2:])
        for run in reads.runs
        if run.first_row < end and run.end_row > first
    ]
    return Reads(reads.pages_B, tuple(runs))
