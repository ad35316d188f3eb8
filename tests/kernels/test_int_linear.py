"""int_linear: packed bytes, exact integers, and the product that users get."""

from itertools import product

import pytest
import torch

from headrace import kernels
from headrace.kernels import int_linear
from headrace.kernels.before import Norm, apply
from headrace.kernels.int_linear import layout
from tests.kernels.cases.int_linear import weight

NATIVE = kernels.available()[1:]


@pytest.mark.parametrize("level", kernels.available())
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_come_back(bits: int, level: str) -> None:
    random = torch.Generator().manual_seed(bits)
    sizes = ((64, 64, 32), (70, 130, 64), (1, 5, 32))
    for (outputs, inputs, group), asymmetric in product(sizes, (False, True)):
        groups = -(-inputs // min(group, inputs))
        codes = torch.randint(0, 1 << bits, (outputs, inputs), generator=random, dtype=torch.uint8)
        scales = torch.randn(outputs, groups, generator=random).half()
        zeros = torch.randint(0, 1 << bits, (outputs, groups), generator=random, dtype=torch.uint8)
        with kernels.forced(level):
            packed = int_linear.pack(codes, scales, zeros if asymmetric else None, group=group, bits=bits)
        zeros = zeros if asymmetric else torch.full_like(zeros, 1 << (bits - 1))
        same = map(torch.equal, packed.unpack(), (codes, scales, zeros))
        assert all(same), f"{outputs} x {inputs} g{group}, {'a' if asymmetric else ''}symmetric"


@pytest.mark.parametrize("level", NATIVE)
@pytest.mark.parametrize(("rows", "width", "group"), [(9, 200, 64), (1, 1, 32), (0, 33, 32), (513, 97, 1024)])
def test_rows_are_quantised_to_the_same_integers(rows: int, width: int, group: int, level: str) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=random) * torch.logspace(-40, 20, rows)[:, None]
    x[4:5] = 0
    for before in (None, Norm(torch.rand(width, generator=random), 1e-5)):
        with kernels.forced(level):
            got = int_linear.quantise(x, group, before)
            same = int_linear.quantise(apply(before, x), group)
        with kernels.forced(kernels.REFERENCE):
            want = int_linear.quantise(x, group, before)
        assert all(torch.equal(a, b) for a, b in zip(got, same, strict=True)), "a fused norm rounds otherwise"
        if before is None:
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        assert ((got.codes_TI.int() - want.codes_TI.int()).abs() <= 1).all()


@pytest.mark.parametrize("level", kernels.available())
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_integer_sums_are_exact(bits: int, level: str) -> None:
    """With every scale 1 the result is the integer product itself."""
    random = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 1 << bits, (96, 256), generator=random, dtype=torch.uint8)
    inputs = torch.randint(-127, 128, (11, 256), generator=random).float()
    inputs[:, 0] = 127  # so that a row's scale is 1
    packed = int_linear.pack(codes, torch.ones(96, 2).half(), group=128, bits=bits)
    want = inputs.double() @ (codes.double() - (1 << (bits - 1))).T
    with kernels.forced(level):
        assert torch.equal(int_linear.int_linear(inputs, packed).double(), want)


@pytest.mark.parametrize("level", kernels.available())
def test_close_to_dequantise_then_multiply(level: str) -> None:
    """The definition, but for the rounding of activations, which is done to both here."""
    packed = weight(4, 130, 256, 64, True)
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    with kernels.forced(level):
        rows = int_linear.quantise(x, 64)
        rounded = rows.codes_TI[:, :256].float() * rows.scales_T[:, None]
        want = rounded @ packed.dequantise().T
        got = int_linear.int_linear(x, packed)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("level", kernels.available())
def test_outputs_are_rows_of_the_matrix(level: str) -> None:
    for packed in (weight(5, 100, 70, 32, True), weight(4, 100, 33, 1024, False)):
        for ids in (torch.tensor([99, 0, 64, 64, 7]), torch.tensor([], dtype=torch.int64)):
            with kernels.forced(level):
                got = int_linear.outputs(packed, ids)
            torch.testing.assert_close(got, packed.dequantise()[ids], rtol=1e-6, atol=0)


def test_the_result_may_lie_where_the_addend_was() -> None:
    packed = weight(4, 64, 64, 32, False)
    x, add = torch.randn(3, 64), torch.randn(3, 64)
    want = int_linear.int_linear(x, packed, add_TO=add)
    got = int_linear.int_linear(x, packed, add_TO=add, out_TO=add)
    assert got is add and torch.equal(got, want)


BAD = {
    "rows of another width": ({"x": torch.zeros(2, 63)}, "rows of x have 63 values, the weight takes 64"),
    "another dtype": ({"x": torch.zeros(2, 64).double()}, "x must be float32"),
    "columns": ({"x": torch.zeros(64, 2).T}, "contiguous rows"),
    "short bias": ({"bias_O": torch.zeros(63)}, "bias must be contiguous, with 64 values"),
    "another addend": ({"add_TO": torch.zeros(3, 64)}, "add must be contiguous, with 128 values"),
    "another result": ({"out_TO": torch.zeros(1, 64)}, r"out must be float32 \[2, 64\]"),
}


@pytest.mark.skipif(kernels.isa() == kernels.REFERENCE, reason="the native module checks")
@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(change: dict, message: str) -> None:
    arguments = {"x": torch.zeros(2, 64), "weight": weight(4, 64, 64, 32, False), **change}
    with pytest.raises(ValueError, match=message):
        int_linear.int_linear(**arguments)


def test_bytes_are_what_the_layout_says() -> None:
    """4 bits and one f16 scale per 128 inputs: 4.125 bits per weight."""
    assert layout.packed_bytes(640, 1024, 128, 4, False) * 8 == 640 * 1024 * 4.125
    assert layout.packed_bytes(640, 1024, 32, 4, False) * 8 == 640 * 1024 * 4.5
