"""dual_linear: packed bytes, rounding twice, integers that fit, and the product that users get."""

from itertools import product

import pytest
import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels import dual_linear, int_linear
from headrace.kernels.dual_linear import DualWeight, Parts, layout
from tests.kernels.cases.dual_linear import weight
from tests.kernels.rounding import DTYPES, SIZES, no_numbers_that_pass

NATIVE = kernels.available()[1:]

each_level = pytest.mark.parametrize("level", kernels.available())


each_bits = pytest.mark.parametrize("bits", layout.MOST_W8)


def rounded(level: str, rows_OI: Tensor, group: int, bits: int = 4) -> DualWeight:
    with kernels.forced(level):
        return dual_linear.round_and_pack(rows_OI, group=group, bits=bits)


def awkward(outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """Rows from subnormal to nearly infinite; groups of one sign, of ties at both levels, outliers and zeros."""
    random = torch.Generator().manual_seed(outputs * inputs)
    weight_OI = torch.randn(outputs, inputs, generator=random)
    kind = torch.randint(0, 6, (outputs, -(-inputs // 32)), generator=random)
    kind_OI = kind.repeat_interleave(32, 1)[:, :inputs]
    for which, values_OI in enumerate(
        (
            (weight_OI * 40).round() / 2,
            weight_OI.abs(),
            -weight_OI.abs(),
            weight_OI * 0.02,
            torch.zeros(outputs, inputs),
        )
    ):
        weight_OI = torch.where(kind_OI == which, values_OI, weight_OI)
    weight_OI[::3, 0] = 59.5  # such rows have a scale of one half
    weight_OI = weight_OI.clamp(-59.5, 59.5)
    most = torch.finfo(dtype).max
    scale = torch.tensor([1.0, 1.0, 1.0, 1e-6, 2.0**-14, most / 60, torch.finfo(dtype).tiny / 64])
    return (weight_OI.double() * scale[torch.arange(outputs) % 7][:, None]).to(dtype)


@each_level
@each_bits
def test_parts_come_back(bits: int, level: str) -> None:
    """What pack took, and what the native rounding wrote, is what the layout reads."""
    packed = weight(130, 200, 64, bits)
    assert torch.equal(layout.pack(packed.unpack(), 64, bits), packed.packed)
    for size in SIZES:
        mine = rounded(level, awkward(*size[:2], torch.float32), size[2], bits)
        assert torch.equal(layout.pack(mine.unpack(), mine.group, bits), mine.packed)


@each_bits
def test_bytes_are_those_of_the_reference(bits: int) -> None:
    for (outputs, inputs, group), dtype in product(SIZES, DTYPES):
        rows_OI = awkward(outputs, inputs, dtype)
        want = rounded(kernels.REFERENCE, rows_OI, group, bits)
        for level in NATIVE:
            got = rounded(level, rows_OI, group, bits)
            assert torch.equal(got.packed, want.packed), f"{level}: {outputs} x {inputs} g{group} {dtype}"


@each_level
@each_bits
def test_every_range_of_a_group_stays_within_a_signed_byte(bits: int, level: str) -> None:
    """All pairs of extremes that a group can have, with all values between: the claim of round_and_pack."""
    most = layout.MOST_W8[bits]
    ends = torch.arange(0, most + 1)
    low_P, high_P = (t.flatten() for t in torch.meshgrid(-ends, ends, indexing="ij"))
    between_PI = torch.arange(-most, 256 - most).clamp(low_P[:, None], high_P[:, None])
    first_PI = torch.zeros(
        len(low_P), 256, dtype=torch.int64
    )  # a group of its own, which sets the scale to 1
    first_PI[:, 0] = most
    w8_PI = torch.cat([first_PI, between_PI], 1)
    got = rounded(level, w8_PI.float(), 256, bits)
    assert torch.equal(got.unpack().scales_O, torch.ones(len(w8_PI)))
    assert got.unpack().steps_OG.max() == 1 << (8 - bits)
    assert got.w8().abs().max() <= 127
    assert (got.w8()[:, :256] == first_PI).logical_or(first_PI > 0).all()


@each_level
@each_bits
def test_the_error_is_bounded(bits: int, level: str) -> None:
    """Half a unit at the first level; at the second half a step, and what the codes of a rounded step leave out."""
    random = torch.Generator().manual_seed(0)
    rows_OI = torch.randn(200, 512, generator=random) * torch.rand(200, 512, generator=random)
    mine = rounded(level, rows_OI, 64, bits)
    parts = mine.unpack()
    error_OI = (mine.w8() - rows_OI / parts.scales_O[:, None]).abs()
    w8_OGI = (rows_OI / parts.scales_O[:, None]).round().unflatten(1, (-1, 64))
    range_OG = w8_OGI.amax(-1).clamp(min=0) - w8_OGI.amin(-1).clamp(max=0)
    left_out_OG = (range_OG - ((1 << bits) - 1) * parts.steps_OG.int()).clamp(min=0)
    bound_OG = 0.5 + parts.steps_OG / 2 + left_out_OG + 1e-3
    assert left_out_OG.max() <= 7.5
    assert (error_OI.unflatten(1, (-1, 64)) <= bound_OG[..., None]).all()


@each_level
def test_a_worked_example(level: str) -> None:
    """Scale 1/2; a group from -30 to 119 has steps of 10 and its zero at 3; half-way goes to the even code."""
    row = torch.tensor([59.5, -15.0, 2.5, 7.5, -2.5, -7.5, 0.0, 0.1])
    codes, steps, zeros, scales = rounded(level, row[None], 8).unpack()
    assert scales.tolist() == [0.5] and steps.tolist() == [[10]] and zeros.tolist() == [[3]]
    assert codes.tolist() == [[15, 0, 3, 5, 3, 1, 3, 3]]


@each_level
def test_rows_below_the_least_scale_are_zero(level: str) -> None:
    for value in (0.0, -0.0, 1e-45, -1e-37):
        assert not rounded(level, torch.full((2, 64), value), 32).packed.any(), value


@each_level
def test_no_numbers_are_refused(level: str) -> None:
    assert not no_numbers_that_pass(lambda rows_OI: rounded(level, rows_OI, 64))


def test_threads_do_not_change_bytes() -> None:
    results = []
    try:
        for count in (1, 2, 5):
            kernels.set_threads(count)
            results.append(
                dual_linear.round_and_pack(awkward(200, 300, torch.bfloat16), group=64, bits=3).packed
            )
    finally:
        kernels.set_threads(0)
    assert all(torch.equal(result, results[0]) for result in results)


@each_level
def test_nothing_is_written_beside_the_target(level: str) -> None:
    rows_OI = awkward(70, 130, torch.bfloat16)
    want = rounded(level, rows_OI, 64).packed
    room = torch.full((len(want) + 128,), 0xAB, dtype=torch.uint8)
    with kernels.forced(level):
        dual_linear.round_and_pack(rows_OI, group=64, bits=4, into=room[64:-64])
    assert torch.equal(room[64:-64], want)
    assert (room[:64] == 0xAB).all() and (room[-64:] == 0xAB).all()


def largest(group: int) -> DualWeight:
    """As wide as can be; every weight is -128 times a scale of 1, by a step of 16 and codes 8 below their zero."""
    steps = torch.full((64, -(-layout.MAX_WIDTH // group)), 16, dtype=torch.uint8)
    codes = torch.full((64, layout.MAX_WIDTH), 7, dtype=torch.uint8)
    return dual_linear.pack(
        Parts(codes, steps, torch.full_like(steps, 15), torch.ones(64)), group=group, bits=4
    )


@pytest.mark.parametrize("group", [96, 128, 1 << 17])
def test_sums_are_exact_and_fit(group: int) -> None:
    """With every scale 1 the result is the integer itself; at the greatest width it is as large as can be."""
    packed = largest(group)
    # the reference takes all rows alike, and a second to unpack short groups
    slow = [(kernels.REFERENCE, 3)] if group == layout.MAX_WIDTH or not NATIVE else []
    for level, rows in [*slow, *product(NATIVE, (1, 2, 3, 8, 9))]:
        x = torch.full((rows, layout.MAX_WIDTH), 127.0)
        x[rows // 2] = -127
        with kernels.forced(level):
            got = dual_linear.dual_linear(x, packed)
        want = torch.full((rows, 64), -128.0 * 127 * layout.MAX_WIDTH)
        want[rows // 2] *= -1
        assert torch.equal(got, want), f"{level}: {rows} rows"


@each_level
@each_bits
def test_sums_of_anything_are_exact(bits: int, level: str) -> None:
    random = torch.Generator().manual_seed(3)
    for outputs, inputs, group in SIZES:
        packed = weight(outputs, inputs, group, bits)
        whole = packed.unpack()._replace(scales_O=torch.ones(outputs))
        packed = dual_linear.pack(whole, group=group, bits=bits)
        x = torch.randint(-127, 128, (11, inputs), generator=random).float()
        x[:, 0] = 127  # so that a row's scale is 1
        want = x.double() @ packed.w8().double().T
        with kernels.forced(level):
            got = dual_linear.dual_linear(x, packed)
        assert torch.equal(got.double(), want), f"{outputs} x {inputs} g{group}"


@each_bits
def test_native_levels_give_the_bits_of_the_reference(bits: int) -> None:
    """Nothing but the order could differ, and integers have none."""
    packed = weight(130, 333, 64, bits)
    for rows in (1, 3, 17, 64, 513):
        x = torch.randn(rows, 333, generator=torch.Generator().manual_seed(rows))
        with kernels.forced(kernels.REFERENCE):
            want = dual_linear.dual_linear(x, packed)
        for level in NATIVE:
            with kernels.forced(level):
                assert torch.equal(dual_linear.dual_linear(x, packed), want), f"{level}: {rows} rows"


@each_level
def test_close_to_dequantise_then_multiply(level: str) -> None:
    packed = weight(130, 256, 64)
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    with kernels.forced(level):
        rows = int_linear.quantise(x, 64)
        rounded_TI = rows.codes_TI[:, :256].float() * rows.scales_T[:, None]
        want = rounded_TI @ packed.dequantise().T
        got = dual_linear.dual_linear(x, packed)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@each_level
def test_outputs_are_rows_of_the_matrix(level: str) -> None:
    for packed in (weight(100, 70, 32), weight(100, 33, 1024), weight(100, 70, 32, bits=3)):
        for ids in (torch.tensor([99, 0, 64, 64, 7]), torch.tensor([], dtype=torch.int64)):
            with kernels.forced(level):
                assert torch.equal(dual_linear.outputs(packed, ids), packed.dequantise()[ids])


def test_the_result_may_lie_where_the_addend_was() -> None:
    packed = weight(64, 64, 32)
    x, add = torch.randn(3, 64), torch.randn(3, 64)
    want = dual_linear.dual_linear(x, packed, add_TO=add)
    got = dual_linear.dual_linear(x, packed, add_TO=add, out_TO=add)
    assert got is add and torch.equal(got, want)


def test_bytes_are_what_the_layout_says() -> None:
    """4 bits, one byte per group, four per output: 4.0625 bits per weight and a little; 3 bits with groups of 32 are
    3.25."""
    assert layout.packed_bytes(640, 1024, 128, 4) * 8 == 640 * 1024 * 4.0625 + 640 * 32
    assert layout.packed_bytes(640, 1024, 32, 4) * 8 == 640 * 1024 * 4.25 + 640 * 32
    assert layout.packed_bytes(640, 1024, 32, 3) * 8 == 640 * 1024 * 3.25 + 640 * 32


GOOD = {"codes": 8, "step": 16, "zero": 8}
BAD_PARTS = {
    "a code of five bits": {"codes": 16},
    "no step": {"step": 0},
    "a large step": {"step": 17},
    "a zero point of five bits": {"zero": 16},
    "beyond a signed byte": {"codes": 0, "zero": 9},
}


@pytest.mark.parametrize("change", BAD_PARTS.values(), ids=BAD_PARTS)
def test_bad_parts(change: dict[str, int]) -> None:
    def filled(**values: int) -> Parts:
        codes, step, zero = values["codes"], values["step"], values["zero"]
        parts = [torch.full((3, n), v, dtype=torch.uint8) for n, v in ((64, codes), (2, step), (2, zero))]
        return Parts(parts[0], parts[1], parts[2], torch.ones(3))

    dual_linear.pack(filled(**GOOD), group=32, bits=4)
    with pytest.raises(ValueError, match="must be 0 to 15, steps 1 to 16, .* -128 to 127"):
        dual_linear.pack(filled(**{**GOOD, **change}), group=32, bits=4)


BAD = {
    "rows of another width": ({"x": torch.zeros(2, 63)}, "rows of x have 63 values, the weight takes 64"),
    "another dtype": ({"x": torch.zeros(2, 64).double()}, "x must be float32"),
    "short bias": ({"bias_O": torch.zeros(63)}, "bias must be contiguous, with 64 values"),
    "another addend": ({"add_TO": torch.zeros(3, 64)}, "add must be contiguous, with 128 values"),
    "another result": ({"out_TO": torch.zeros(1, 64)}, r"out must be float32 \[2, 64\]"),
    "bytes of another shape": ({"weight": DualWeight(torch.zeros(9).byte(), 64, 64, 32, 4)}, "packed has 9"),
    "sums that may not fit": (
        {"weight": DualWeight(torch.zeros(9).byte(), 64, (1 << 17) + 1, 32, 4)},
        "131073 inputs: sums of more than 131072 may exceed 32 bits",
    ),
}


@pytest.mark.skipif(kernels.isa() == kernels.REFERENCE, reason="the native module checks")
@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(change: dict, message: str) -> None:
    arguments = {"x": torch.zeros(2, 64), "weight": weight(64, 64, 32), **change}
    with pytest.raises(ValueError, match=message):
        dual_linear.dual_linear(**arguments)
