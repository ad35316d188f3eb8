"""Writing keys and values: the same bytes on every level, whatever the numbers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels.paged_attention import PageStore, read, write
from headrace.types import Reads, Run

PAGES = 5
STORED = (torch.float32, torch.bfloat16, torch.int8)

each_level = pytest.mark.parametrize("level", kernels.available())


def make(
    stored: torch.dtype, head_size: int, page_tokens: int, spare: int | None = None
) -> tuple[PageStore, Tensor]:
    """spare: a head's values follow its keys, and so many bytes them; None: all heads' keys come first."""
    store = PageStore(64, 0, page_tokens, 3, head_size, stored)
    if spare is None:
        store, end = dataclasses.replace(store, v_at=64 + store.nbytes), 64 + 2 * store.nbytes
    else:
        stride = 2 * store.head_bytes + spare
        store = dataclasses.replace(store, v_at=64 + store.head_bytes, head_stride=stride)
        end = 64 + 3 * stride
    return store, torch.full((PAGES, -(-end // 64) * 64), 0xFF, dtype=torch.uint8)


def awkward(rows: int, head_size: int, seed: int) -> Tensor:
    """Heads from subnormal to nearly too large, heads of ties, zeros of both signs, and one number in zeros."""
    random = torch.Generator().manual_seed(seed)
    x_TGH = torch.randn(rows, 3, head_size, generator=random)
    kind = torch.randint(0, 6, (rows, 3, 1), generator=random)
    scale = torch.pow(10.0, torch.randint(-46, 38, kind.shape, generator=random).double())
    ties = (x_TGH * 20).round() / 2
    ties[..., 0] = 127.0
    alone = torch.zeros_like(x_TGH)
    alone[..., -1] = x_TGH[..., -1]
    for which, values in enumerate(
        ((x_TGH.double() * scale).float(), ties, torch.zeros_like(x_TGH), -torch.zeros_like(x_TGH), alone)
    ):
        x_TGH = torch.where(kind == which, values, x_TGH)
    return x_TGH.clamp(-3e38, 3e38)


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("spare", [None, 0, 128])
@pytest.mark.parametrize(("head_size", "page_tokens"), [(16, 16), (64, 16), (80, 32)])
@each_level
def test_bytes_are_those_of_the_reference(
    level: str, head_size: int, page_tokens: int, spare: int | None, stored: torch.dtype
) -> None:
    rows = PAGES * page_tokens
    slots = torch.randperm(rows, generator=torch.Generator().manual_seed(1))[: rows - 7]
    k_TGH, v_TGH = (awkward(len(slots), head_size, seed) for seed in (2, 3))
    if stored == torch.int8:  # of the others a NaN has several encodings
        k_TGH[2, 0, 3], v_TGH[5, 2, -1], v_TGH[6, 1, 0] = math.nan, math.inf, -math.inf
    arenas = []
    for each in (level, kernels.REFERENCE):
        store, arena = make(stored, head_size, page_tokens, spare)
        with kernels.forced(each):
            write(arena, store, k_TGH, v_TGH, slots)
        arenas.append(arena)
    assert torch.equal(*arenas)


@each_level
def test_no_rows_and_one_row_are_written(level: str) -> None:
    for count in (0, 1):
        store, arena = make(torch.int8, 48, 16)
        x_TGH, slots = torch.ones(count, 3, 48), torch.full((count,), 17)
        before = arena.clone()
        with kernels.forced(level):
            write(arena, store, x_TGH, x_TGH, slots)
        assert (arena != before).any(1).tolist() == [False, count == 1, False, False, False], f"{count} rows"
        assert all(
            torch.equal(part[1:], x_TGH) for part in read(arena, store, torch.tensor([1]), 1 + count)
        ), f"{count} rows"


@each_level
def test_int8_is_off_by_at_most_half_a_step(level: str) -> None:
    store, arena = make(torch.int8, 48, 16)
    k_TGH, v_TGH = (torch.randn(80, 3, 48, generator=torch.Generator().manual_seed(s)) for s in (4, 5))
    with kernels.forced(level):
        write(arena, store, k_TGH, v_TGH, torch.arange(80))
    for got, want in zip(read(arena, store, torch.arange(PAGES), 80), (k_TGH, v_TGH), strict=True):
        step = want.abs().amax(-1, keepdim=True) / 127
        assert bool(((got - want).abs() <= step * 0.5001).all())
        assert torch.equal(got.abs().amax(-1, keepdim=True), step * 127)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@each_level
def test_int8_does_not_hide_what_is_no_number(level: str, bad: float) -> None:
    """The head reads as NaN, so that a broken layer is seen; the token's other heads are untouched."""
    store, arena = make(torch.int8, 16, 16)
    k_TGH = torch.ones(2, 3, 16)
    k_TGH[1, 2, 5] = bad
    with kernels.forced(level):
        write(arena, store, k_TGH, k_TGH, torch.tensor([3, 4]))
    for got in read(arena, store, torch.tensor([0]), 5):
        assert bool(got[4, 2].isnan().all())
        assert torch.equal(got[3], torch.ones(3, 16)) and torch.equal(got[4, :2], torch.ones(2, 16))


def shared_reads(lengths: list[int], shared: int, page_tokens: int) -> Reads:
    """One row each, at the end of as many tokens, the first `shared` of them in the same pages."""
    pages, runs = [], []
    for row, length in enumerate(lengths):
        own = range(1000 * (row + 1), 1000 * (row + 1) + (length - shared) // page_tokens)
        runs.append(Run(row, row + 1, len(pages), 0, length))
        pages += [*range(shared // page_tokens), *own]
    return Reads(torch.tensor(pages), tuple(runs))


@pytest.mark.parametrize(
    ("count", "shared", "per_kv_head"),
    [
        (1, 2048, 3),  # three segments of 1024 tokens
        (4, 2048, 2 + 4),  # two that are read once, and each one's own
        (4, 2000, 1 + 4 * 2),  # the second one's pages differ at its end
        (4, 0, 4 * 3),
        (40, 2048, 2 * 2 + 40),  # 64 rows of 2 heads each are a tile
    ],
)
@each_level
def test_what_sequences_share_is_read_once(level: str, count: int, shared: int, per_kv_head: int) -> None:
    with kernels.forced(level):
        pieces = kernels.native("paged_attention_pieces")
    if pieces is None:
        pytest.skip("the reference has no pieces")
    store = PageStore(0, 0, 16, 3, 16, torch.float32)
    reads = shared_reads([3072] * count, shared, 16)
    arena = torch.empty(50_000, store.nbytes, dtype=torch.uint8)
    q_TNH, lse_TN = torch.empty(count, 6, 16), torch.empty(count, 6)
    positions = torch.full((count,), 3071)
    places = (arena, 0, 0, 16, 3, 4, 0, positions, reads.pages_B, reads.runs_W5)
    assert pieces(q_TNH, *places, 1.0, 0, 0, torch.empty_like(q_TNH), lse_TN) == 3 * per_kv_head
