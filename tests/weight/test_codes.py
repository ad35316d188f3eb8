"""Codes that others choose: what a grid stores is what it said, and rounding to nearest through it is the kernels'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from headrace.weight.codes import Coded, code_bytes, nearest, read_codes, store_nearest, write_codes
from headrace.weight.formats import SLOT
from headrace.weight.formats.spqr import SpqrMatrix

SPECS = (
    "int8",
    "int7:group=32",
    "int6:group=64",
    "int5:group=32",
    "int4",
    "int4:group=32,asymmetric=true",
    "int3:group=32",
    "int3:group=0,asymmetric=true",
    "int2:group=32",
    "int4_dual:group=32",
    "int4_dual:group=0",
    "int3_dual",
    "int3_dual:group=64",
    "tmac:bits=1,group=32",
    "tmac:bits=2,group=32",
    "tmac:bits=3,group=0",
    "tmac:bits=4",
    "spqr:outliers=0.05",
    "spqr:base=int3_dual",
    "spqr:base=tmac:bits=3",
)
SIZES = ((192, 256), (130, 70), (3, 8), (1, 1))
CPU = torch.device("cpu")

each_spec = pytest.mark.parametrize("spec", SPECS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(matrix: Any) -> list[Tensor]:
    """All that it holds."""
    if isinstance(matrix, SpqrMatrix):
        return [*packed(matrix.dense), matrix.sparse.starts, matrix.sparse.entries]
    return [matrix.weight.packed]


def form(spec: str) -> Coded:
    made = SLOT.make(spec)
    assert isinstance(made, Coded)
    return made


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_come_back(bits: int) -> None:
    for inputs in (1, 7, 8, 33, 64):
        codes = torch.randint(0, 1 << bits, (5, inputs), dtype=torch.uint8)
        stored = write_codes(codes, bits)
        assert stored.shape == (5, code_bytes(inputs, bits))
        assert torch.equal(read_codes(stored, inputs, bits), codes)


@each_spec
def test_rounding_to_nearest_is_the_kernels(spec: str) -> None:
    """Byte for byte: a folder that a recipe rounded to nearest runs as one that was rounded while it was loaded."""
    for outputs, inputs in SIZES:
        rows_OI = random(outputs, inputs)
        rows_OI[0] = 0
        plain, stored = (SLOT.make(spec).start(outputs, inputs, torch.float32) for _ in range(2))
        plain.put(0, rows_OI)
        rows_OB = store_nearest(form(spec), rows_OI)
        assert rows_OB.shape == (outputs, form(spec).row_bytes(inputs))
        stored.put_stored(0, rows_OB)
        for got, want in zip(packed(stored.finish()), packed(plain.finish()), strict=True):
            assert torch.equal(got, want), (outputs, inputs)


@each_spec
def test_values_are_what_runs(spec: str) -> None:
    for outputs, inputs in SIZES:
        rows_OI = random(outputs, inputs, seed=1)
        rows_OB = store_nearest(form(spec), rows_OI)
        values_OI = form(spec).values(rows_OB, inputs)
        assert torch.equal(values_OI, nearest(form(spec), rows_OI))
        packing = SLOT.make(spec).start(outputs, inputs, torch.float32)
        for first in (*range(64, outputs, 64), 0):  # blocks of rows in any order
            packing.put_stored(first, rows_OB[first : first + 64])
        assert torch.equal(packing.finish().rows(torch.arange(outputs)), values_OI)


@each_spec
def test_groups_may_be_fitted_and_inputs_rounded_one_by_one(spec: str) -> None:
    rows_OI = random(20, 96, seed=2)
    grid, group = form(spec).grid(rows_OI), form(spec).group_of(96)
    found = []
    for i in range(96):
        if i % group == 0:
            grid.fit(i, rows_OI[:, i : i + group])
        found.append(grid.round(i, rows_OI[:, i : i + 1]))
    assert torch.equal(torch.cat(found, 1), nearest(form(spec), rows_OI))
    assert torch.equal(grid.stored(), store_nearest(form(spec), rows_OI))


@each_spec
def test_what_is_far_off_is_held_at_the_ends(spec: str) -> None:
    """A weight that has grown beyond what its group was fitted to."""
    rows_OI = random(20, 64, seed=3)
    grid = form(spec).grid(rows_OI)
    grid.fit(0, rows_OI)
    near_OI = grid.round(0, rows_OI)
    far_OI = grid.round(0, 100 * rows_OI)
    assert torch.equal(form(spec).values(grid.stored(), 64), far_OI)
    packing = SLOT.make(spec).start(20, 64, torch.float32)
    packing.put_stored(0, grid.stored())  # of int4_dual: nothing beyond a signed byte
    assert torch.equal(packing.finish().rows(torch.arange(20)), far_OI)
    held_OI = far_OI.masked_fill(far_OI == (100 * rows_OI).bfloat16(), 0)  # of spqr: all but the outliers
    assert (held_OI * near_OI >= 0).all() and held_OI.abs().max() < 2 * rows_OI.abs().max() + 1
    assert (held_OI != 0).sum() > held_OI.numel() // 2


@each_spec
def test_damaged_bytes_are_refused(spec: str) -> None:
    rows_OB = store_nearest(form(spec), random(4, 64))
    rows_OB[2] = 255
    with pytest.raises(ValueError, match="damaged"):
        form(spec).values(rows_OB, 64)
