"""Every format: rows in any order make the same matrix, which multiplies as its own rows say and fits its promise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels.before import Norm, apply
from headrace.weight.formats import SLOT, Format
from headrace.weight.matrix import Matrix

SPECS = (
    *SLOT.index,
    "int4:group=32",
    "int4:group=0",
    "int4:asymmetric=true",
    "int2:group=32,asymmetric=true",
    "int8:group=64",
    "int4_dual:group=32",
    "int4_dual:group=0",
    "int3_dual:group=0",
    "spqr:base=int4_dual,outliers=0.05",
    "spqr:base=int3_dual,outliers=0.05",
    "spqr:base=int2:group=0",
    "tmac:bits=1",
    "tmac:bits=3,group=32",
    "tmac:bits=4,group=0",
)
DEPENDS = ("dfloat11",)
"""Formats whose size depends on the weights."""
SIZES = ((192, 256), (130, 70), (3, 8), (1, 1))
CPU = torch.device("cpu")

each_spec = pytest.mark.parametrize("spec", SPECS)


def form(spec: str) -> Format:
    return SLOT.make(spec)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(spec: str, weight_OI: Tensor) -> Matrix:
    packing = form(spec).start(*weight_OI.shape, torch.float32)
    packing.put(0, weight_OI)
    return packing.finish()


def dense(matrix: Matrix, outputs: int) -> Tensor:
    return matrix.rows(torch.arange(outputs))


@each_spec
def test_memory_is_what_was_promised(spec: str) -> None:
    for size in SIZES:
        got, promised = made(spec, random(*size)).nbytes, form(spec).num_bytes(*size, torch.float32)
        assert abs(got - promised) <= (0.02 * promised + 8 if spec in DEPENDS else 0), size


@each_spec
def test_rows_may_come_in_any_order_and_any_number(spec: str) -> None:
    for size in SIZES:
        weight_OI = random(*size)
        whole = dense(made(spec, weight_OI), size[0])
        assert whole.shape == size
        for step in (1, 7, 64, 100):
            packing = form(spec).start(*size, torch.float32)
            starts = list(range(0, size[0], step))
            for first in (*starts[1::2], *starts[0::2]):
                packing.put(first, weight_OI[first : first + step])
            assert torch.equal(dense(packing.finish(), size[0]), whole), f"{size}, {step} rows at a time"


@each_spec
def test_rows_may_be_bfloat16(spec: str) -> None:
    weight_OI = random(70, 96).bfloat16()
    assert torch.equal(dense(made(spec, weight_OI), 70), dense(made(spec, weight_OI.float()), 70))


@each_spec
def test_rows_may_differ_in_dtype(spec: str) -> None:
    """What waits for the rest of its block loses nothing to the rows that come later, nor they to it."""
    weight_OI = random(70, 96)
    weight_OI[:20] = weight_OI[:20].bfloat16()
    packing = form(spec).start(70, 96, torch.float32)
    packing.put(0, weight_OI[:20].bfloat16())
    packing.put(50, weight_OI[50:].double())
    packing.put(20, weight_OI[20:50])
    assert torch.equal(dense(packing.finish(), 70), dense(made(spec, weight_OI), 70))


@each_spec
def test_products_are_those_of_the_rows(spec: str) -> None:
    """Up to the rounding of activations to 8 bits, which a format may do."""
    for size in SIZES:
        matrix = made(spec, random(*size))
        for rows in (9, 1, 0):
            x_TI = random(rows, size[1], seed=1)
            want_TO = x_TI @ dense(matrix, size[0]).T
            got_TO = matrix.multiply(x_TI)
            assert got_TO.shape == want_TO.shape
            error = (got_TO - want_TO).square().sum().sqrt()
            assert error <= 0.02 * want_TO.square().sum().sqrt() + 1e-6, f"{size}, {rows} rows"


@each_spec
def test_what_goes_before_and_after(spec: str) -> None:
    matrix, x_TI, wide_T2I = made(spec, random(80, 64)), random(5, 64, seed=1), random(5, 128, seed=2)
    bias_O, add_TO = random(80, seed=3), random(5, 80, seed=4)
    norm = Norm(random(64, seed=5), 1e-5, 1.0)
    want_TO = matrix.multiply(x_TI) + bias_O + add_TO
    assert torch.allclose(matrix.multiply(x_TI, bias_O, add_TO=add_TO.clone()), want_TO, atol=1e-5)
    got_TO = matrix.multiply(x_TI, bias_O, add_TO=add_TO, out_TO=torch.full((5, 80), torch.nan))
    assert torch.allclose(got_TO, want_TO, atol=1e-5)
    assert torch.allclose(matrix.multiply(x_TI, before=norm), matrix.multiply(apply(norm, x_TI)), atol=1e-5)
    for gate in ("silu", "gelu_tanh"):
        got, want = (
            matrix.multiply(wide_T2I, before=gate),
            matrix.multiply(apply(gate, wide_T2I)),
        )
        # an activation that lies between two codes may be rounded either way
        assert (got - want).abs().max() <= 0.02 * want.abs().max()


@each_spec
def test_a_row_does_not_depend_on_the_others(spec: str) -> None:
    if spec == "plain" or (spec in ("bf16", "dfloat11") and kernels.isa() == kernels.REFERENCE):
        pytest.skip("its products are PyTorch's, which may round by what is beside a row")
    matrix, x_TI = made(spec, random(130, 200)), random(40, 200, seed=1)
    whole_TO = matrix.multiply(x_TI)
    for first, last in ((0, 1), (3, 5), (7, 40)):
        assert torch.equal(matrix.multiply(x_TI[first:last]), whole_TO[first:last])


@each_spec
def test_the_error_falls_with_the_bits(spec: str) -> None:
    """Rounding to nearest: at most half a step of the group's range, and zeros stay zeros."""
    weight_OI = random(64, 256)
    weight_OI[5] = 0
    got_OI = dense(made(spec, weight_OI), 64)
    assert torch.equal(got_OI[5], weight_OI[5])
    bits = getattr(form(spec), "bits", None)
    if bits is not None:
        group = form(spec).group or 256
        parts = weight_OI.view(64, -1, group)
        step = 2 * parts.abs().amax(-1) / ((1 << bits) - 1 if bits < 8 else 255)
        error = (got_OI - weight_OI).view(64, -1, group).abs().amax(-1)
        slack = (
            0.51 if getattr(form(spec), "asymmetric", False) else 2
        )  # the code opposite to the extreme does not exist
        assert (error <= slack * step + 1e-3).all()


@pytest.mark.parametrize(
    "spec", ["int4:group=33", "int4:group=-32", "int3:group=16", "int4_dual:group=33", "tmac:group=48"]
)
def test_groups_are_whole_chunks(spec: str) -> None:
    with pytest.raises(ValueError, match="must be a multiple of 32"):
        form(spec)


@pytest.mark.parametrize("bits", [0, 5])
def test_tmac_has_one_to_four_planes(bits: int) -> None:
    with pytest.raises(ValueError, match="must be 1 to 4; use int5 to int8 for more"):
        form(f"tmac:bits={bits}")
