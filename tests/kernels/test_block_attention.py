"""block_attention beyond the contract: where codes lie, how far rounding goes, and what is refused."""

import dataclasses

import pytest
import torch

from headrace import kernels
from headrace.kernels.attention import Queries
from headrace.kernels.block_attention import BlockStore, attend, read, write
from headrace.kernels.block_attention.store import tile, tiled_bytes, untile
from headrace.types import Reads, Run


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize(("outer", "inner"), [(16, 4), (64, 64), (16, 5), (5, 16), (1, 1), (33, 70)])
def test_tiles_come_back(bits: int, outer: int, inner: int) -> None:
    codes = torch.randint(0, 1 << bits, (3, 2, outer, inner), dtype=torch.uint8)
    packed = tile(codes, bits)
    assert packed.shape == (3, 2, tiled_bytes(outer, inner, bits))
    assert torch.equal(untile(packed, outer, inner, bits), codes)


def test_a_vector_is_sixteen_lanes_of_four() -> None:
    """As kernel.h draws it: byte 4 l + i of a tile is outer code l, inner code i; the next tile is above it."""
    codes = torch.randint(0, 16, (16, 8), dtype=torch.uint8)
    packed = tile(codes, 4)
    for lane in range(16):
        for i in range(4):
            assert int(packed[4 * lane + i]) == int(codes[lane, i]) | int(codes[lane, 4 + i]) << 4


def example(rows: int = 4) -> tuple[Queries, torch.Tensor, BlockStore, Reads]:
    random = torch.Generator().manual_seed(3)
    store = BlockStore(0, 0, 64, 64, 64, 64, 2, 64, 4)
    store = dataclasses.replace(store, stride=store.nbytes)
    arena = torch.zeros(9, store.nbytes, dtype=torch.uint8)
    k, v = (torch.randn(512, 2, 64, generator=random) for _ in "kv")
    write(arena, store, k, v, torch.arange(64, 576))
    q = torch.randn(rows, 8, 64, generator=random)
    queries = Queries(q, torch.full((rows,), 512), 0.125, None)
    return queries, arena, store, Reads(torch.arange(1, 9), (Run(0, rows, 0, 0, 512),))


@pytest.mark.skipif(kernels.isa() == kernels.REFERENCE, reason="the reference rounds nothing")
def test_rounding_to_8_bits_costs_less_than_the_codes_do() -> None:
    """Against attention to what was written; the kernel's share of the error is a seventh or less."""
    queries, arena, store, reads = example(rows=32)
    k, v = read(arena, store, torch.arange(1, 9), 512)
    native = attend(queries, arena, store, reads).out_TNH
    with kernels.forced(kernels.REFERENCE):
        exact = attend(queries, arena, store, reads).out_TNH
    random = torch.Generator().manual_seed(3)
    k, v = (torch.randn(512, 2, 64, generator=random) for _ in "kv")
    scores = torch.einsum("tgmh,lgh->tgml", queries.q_TNH.unflatten(1, (2, 4)), k) * 0.125
    want = torch.einsum("tgml,lgh->tgmh", scores.softmax(-1), v).flatten(1, 2)
    assert (native - exact).norm() < 0.15 * (exact - want).norm()


@pytest.mark.skipif(kernels.isa() == kernels.REFERENCE, reason="the native module checks")
def test_arguments_that_do_not_fit_are_refused() -> None:
    queries, arena, store, reads = example()
    run = reads.runs[0]

    def refused(
        match: str, runs: tuple[Run, ...] = reads.runs, pages=reads.pages_B, arena=arena, **change
    ) -> None:
        with pytest.raises(ValueError, match=match):
            attend(queries, arena, dataclasses.replace(store, **change), Reads(pages, runs))

    refused("does not fit", (run._replace(length=100),))
    refused("does not fit", (run._replace(start=10),))
    refused("does not fit", (run._replace(first_page=1),))
    refused("does not fit", (run._replace(end_row=5),))
    refused("where there are 4", (run._replace(end_row=3),))
    refused("overlaps", (run, run))
    refused("page 9 of 9", pages=torch.arange(2, 10))
    refused("do not fit in a page", arena=arena[:, :-1].contiguous())
    refused("do not fit in a page", stride=store.stride - 2)
    refused("whole blocks", page_tokens=32)
    refused("bits", bits=3)
