"""Rounding weights to nearest and packing them: the same bytes on every level; what cannot be rounded is refused."""

from itertools import product

import pytest
import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels import bf16_linear, int_linear
from headrace.kernels.bf16_linear import reference as bf16_reference
from tests.kernels.rounding import DTYPES, SIZES, no_numbers_that_pass

NATIVE = kernels.available()[1:]

each_level = pytest.mark.parametrize("level", kernels.available())
each_kind = pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])


def rounded(level: str, rows_OI: Tensor, group: int, bits: int, asymmetric: bool) -> int_linear.IntWeight:
    with kernels.forced(level):
        return int_linear.round_and_pack(rows_OI, group=group, bits=bits, asymmetric=asymmetric)


def awkward(outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """From subnormal to nearly too large, with ties between codes, groups of one sign, and zeros of both signs."""
    random = torch.Generator().manual_seed(outputs * inputs)
    weight_OI = torch.randn(outputs, inputs, generator=random)
    kind = torch.randint(0, 8, (outputs, -(-inputs // 32)), generator=random)
    kind_OI = kind.repeat_interleave(32, 1)[:, :inputs]
    scale = torch.pow(10.0, torch.randint(-45, 5, kind.shape, generator=random).double())
    scaled_OI = (weight_OI.double() * scale.repeat_interleave(32, 1)[:, :inputs]).float()
    for which, values_OI in enumerate(
        (
            scaled_OI,
            (weight_OI * 6).round() / 2,  # ties
            weight_OI.abs(),
            -weight_OI.abs(),
            torch.zeros(outputs, inputs),
            -torch.zeros(outputs, inputs),
            weight_OI * 2e-7,  # scales that float16 holds as subnormal, or not at all
        )
    ):
        weight_OI = torch.where(kind_OI == which, values_OI, weight_OI)
    return weight_OI.clamp(-6e4, 6e4).to(dtype)


@pytest.mark.parametrize("bits", range(1, 9))
@each_kind
def test_bytes_are_those_of_the_reference(asymmetric: bool, bits: int) -> None:
    for (outputs, inputs, group), dtype in product(SIZES, DTYPES):
        rows_OI = awkward(outputs, inputs, dtype)
        want = rounded(kernels.REFERENCE, rows_OI, group, bits, asymmetric)
        for level in NATIVE:
            got = rounded(level, rows_OI, group, bits, asymmetric)
            assert torch.equal(got.packed, want.packed), f"{level}: {outputs} x {inputs} g{group} {dtype}"


@each_level
@each_kind
def test_scales_are_rounded_as_pytorch_does(asymmetric: bool, level: str) -> None:
    """Every float16 as a scale, what lies half-way between two of them, and its neighbours in float32."""
    halves = torch.arange(0x7C00, dtype=torch.int16).view(torch.float16).double()
    ties = ((halves[1:] + halves[:-1]) / 2).float()
    scales = torch.cat([halves.float(), ties, ties.nextafter(torch.tensor(0.0)), ties.nextafter(ties * 2)])
    divisor = torch.full((1, 1), 15.0 if asymmetric else -8.0)
    weight_OI = torch.cat([scales, -scales])[:, None] * divisor
    want = (weight_OI.abs() if asymmetric else weight_OI).div(divisor).half()
    got = rounded(level, weight_OI, 1, 4, asymmetric).unpack()
    assert torch.equal(got[1], torch.where(want == 0, 0, want))


@each_level
def test_a_worked_example(level: str) -> None:
    """Half-way between two codes goes to the even one; the extreme gets the lowest code; zeros stay zeros."""
    row = torch.tensor([-8.0, 7.0, 0.5, 1.5, -0.5, -1.5, 2.6, 0.0])
    codes, scales, zeros = rounded(level, row[None], 8, 4, False).unpack()
    assert codes.tolist() == [[0, 15, 8, 10, 8, 6, 11, 8]]
    assert scales.tolist() == [[1.0]] and zeros.tolist() == [[8]]
    row = torch.tensor([-2.0, 13.0, 0.5, 1.5, -0.5, -1.5, 2.6, 0.0])
    codes, scales, zeros = rounded(level, row[None], 8, 4, True).unpack()
    assert codes.tolist() == [[0, 15, 2, 4, 2, 0, 5, 2]]
    assert scales.tolist() == [[1.0]] and zeros.tolist() == [[2]]


@each_level
@each_kind
def test_a_group_below_float16_is_zero(asymmetric: bool, level: str) -> None:
    for value in (0.0, -0.0, 1e-45, -1e-8):
        weight = rounded(level, torch.full((2, 64), value), 32, 4, asymmetric)
        _, scales, _ = weight.unpack()
        assert not scales.view(torch.int16).any(), f"the scale of {value} is plus zero"
        assert torch.equal(weight.dequantise(), torch.zeros(2, 64)), value


@each_level
@each_kind
def test_no_numbers_are_refused(asymmetric: bool, level: str) -> None:
    assert not no_numbers_that_pass(lambda rows_OI: rounded(level, rows_OI, 64, 4, asymmetric))


@each_level
def test_scales_beyond_float16_are_refused(level: str) -> None:
    weight_OI = torch.zeros(70, 130)
    for most, asymmetric in ((65519 * 8.0, False), (-65519 * 8.0, False), (65519 * 15.0, True)):
        weight_OI[69, 129] = most
        assert rounded(level, weight_OI, 64, 4, asymmetric).unpack()[1].abs().max() == 65504
        for factor in (1.0001, 1e30):
            weight_OI[69, 129] = most * factor
            with pytest.raises(ValueError, match="too large: .* beyond float16's 65504; store them in bf16"):
                rounded(level, weight_OI, 64, 4, asymmetric)
    weight_OI[69, 128:] = torch.tensor([-3e38, 3e38])  # their difference is infinite
    with pytest.raises(ValueError, match="too large"):
        rounded(level, weight_OI, 64, 4, True)


@each_kind
def test_threads_do_not_change_bytes(asymmetric: bool) -> None:
    results = []
    try:
        for count in (1, 2, 5):
            kernels.set_threads(count)
            results.append(
                int_linear.round_and_pack(
                    awkward(200, 300, torch.bfloat16), group=64, bits=4, asymmetric=asymmetric
                )
            )
    finally:
        kernels.set_threads(0)
    assert all(torch.equal(result.packed, results[0].packed) for result in results)


@each_level
def test_nothing_is_written_beside_the_target(level: str) -> None:
    rows_OI = awkward(70, 130, torch.bfloat16)
    want = rounded(level, rows_OI, 64, 3, True).packed
    room = torch.full((len(want) + 128,), 0xAB, dtype=torch.uint8)
    with kernels.forced(level):
        int_linear.round_and_pack(rows_OI, group=64, bits=3, asymmetric=True, into=room[64:-64])
    assert torch.equal(room[64:-64], want)
    assert (room[:64] == 0xAB).all() and (room[-64:] == 0xAB).all()


@pytest.mark.skipif(kernels.isa() == kernels.REFERENCE, reason="the native module checks")
@pytest.mark.parametrize("pack", ["int_linear", "bf16_linear"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(4, 64).double(), "must be float32, bfloat16 or float16"),
        (torch.zeros(64, 4).T, r"must be contiguous \[O, I\]"),
    ],
    ids=["float64", "columns"],
)
def test_bad_rows(rows: Tensor, message: str, pack: str) -> None:
    with pytest.raises(ValueError, match=message):
        if pack == "int_linear":
            int_linear.round_and_pack(rows, group=32, bits=4, asymmetric=False)
        else:
            bf16_linear.pack(rows)


@each_level
def test_bf16_packs_what_pytorch_rounds(level: str) -> None:
    for (outputs, inputs, _), dtype in product(SIZES, DTYPES):
        rows_OI = awkward(outputs, inputs, dtype)
        with kernels.forced(level):
            packed = bf16_linear.pack(rows_OI)
        want = rows_OI.bfloat16()
        same = torch.equal(packed.packed.view(torch.int16), bf16_reference.pack(want).view(torch.int16))
        assert same and torch.equal(bf16_reference.unpack(*packed), want), f"{outputs} x {inputs} {dtype}"
