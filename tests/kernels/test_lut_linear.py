"""lut_linear: packed planes, tables, rounding, exact integers, and the product that users get."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels import int_linear, lut_linear
from headrace.kernels.before import Norm, apply
from headrace.kernels.lut_linear import LutWeight, layout, reference
from tests.kernels.cases.lut_linear import here, weight
from tests.kernels.rounding import DTYPES, SIZES, no_numbers_that_pass
from tests.kernels.test_rounding import awkward

NATIVE = kernels.available()[1:]

each_level = pytest.mark.parametrize("level", kernels.available())
each_width = pytest.mark.parametrize("bits", range(1, 5))


def rounded(level: str, rows_OI: Tensor, group: int, bits: int) -> LutWeight:
    with kernels.forced(level):
        return lut_linear.round_and_pack(rows_OI, group=group, bits=bits)


def ternary(outputs: int, inputs: int, group: int) -> Tensor:
    """Every other group is a number, its negative and 0; one in three a little off; the rest is anything."""
    random = torch.Generator().manual_seed(outputs + inputs)
    weight_OI = torch.randn(outputs, inputs, generator=random)
    scale_OI = torch.rand(outputs, -(-inputs // group), generator=random).repeat_interleave(group, 1)[
        :, :inputs
    ]
    signs_OI = torch.randint(-1, 2, (outputs, inputs), generator=random)
    off_OI = signs_OI * scale_OI * (1 - 0.03 * torch.rand(outputs, inputs, generator=random))
    kind_OI = torch.arange(inputs).div(group, rounding_mode="floor").expand(outputs, -1) % 6
    return torch.where(kind_OI % 2 == 0, signs_OI * scale_OI, torch.where(kind_OI == 3, off_OI, weight_OI))


@each_level
@each_width
def test_codes_come_back(bits: int, level: str) -> None:
    random = torch.Generator().manual_seed(bits)
    for outputs, inputs, group in ((64, 64, 32), (70, 130, 64), (1, 5, 32), (130, 600, 320), (33, 300, 1024)):
        groups = -(-inputs // min(group, inputs))
        codes = torch.randint(0, 1 << bits, (outputs, inputs), generator=random, dtype=torch.uint8)
        scales = torch.randn(outputs, groups, generator=random).half()
        with kernels.forced(level):
            packed = lut_linear.pack(codes, scales, group=group, bits=bits)
        assert all(map(torch.equal, packed.unpack(), (codes, scales))), f"{outputs} x {inputs} g{group}"
        assert torch.equal(layout.pack(codes, scales, min(group, inputs), bits, packed.wide), packed.packed)


@each_width
@pytest.mark.parametrize("wide", [False, True])
def test_both_orders_hold_the_same(bits: int, wide: bool) -> None:
    for outputs, inputs, group in ((70, 130, 64), (33, 300, 1024)):
        packed = weight(bits, outputs, inputs, group)
        codes, scales = packed.unpack()
        again = LutWeight(
            layout.pack(codes, scales, min(group, inputs), bits, wide),
            outputs,
            inputs,
            packed.group,
            bits,
            wide,
        )
        assert all(map(torch.equal, again.unpack(), (codes, scales)))


@pytest.mark.parametrize("level", NATIVE)
def test_another_order_is_refused(level: str) -> None:
    packed = weight(2, 64, 64, 32)
    with kernels.forced(level):
        other = replace(here(packed), wide=not lut_linear.wide())
        for call in (
            lambda: lut_linear.lut_linear(torch.zeros(1, 64), other),
            lambda: lut_linear.outputs(other, torch.tensor([0])),
        ):
            with pytest.raises(ValueError, match="pack them on the level that multiplies"):
                call()


@each_width
def test_bytes_are_those_of_the_reference(bits: int) -> None:
    for (outputs, inputs, group), dtype in product(SIZES, DTYPES):
        for rows_OI in (awkward(outputs, inputs, dtype), ternary(outputs, inputs, group).to(dtype)):
            want = rounded(kernels.REFERENCE, rows_OI, group, bits)
            for level in NATIVE:
                got = rounded(level, rows_OI, group, bits)
                same = layout.pack(*want.unpack(), want.group, bits, got.wide)
                assert torch.equal(got.packed, same), f"{level}: {outputs} x {inputs} g{group} {dtype}"


@each_level
@each_width
def test_codes_are_those_of_int_linear(bits: int, level: str) -> None:
    """But for one bit, and for groups of a ternary model's weights."""
    rows_OI = torch.randn(70, 256, generator=torch.Generator().manual_seed(bits))
    mine = rounded(level, rows_OI, 64, bits)
    with kernels.forced(level):
        theirs = int_linear.round_and_pack(rows_OI, group=64, bits=bits, asymmetric=False)
    assert torch.equal(mine.dequantise(), theirs.dequantise()) == (bits > 1)


@each_level
def test_ternary_weights_are_kept_in_two_bits(level: str) -> None:
    rows_OI = torch.randint(-1, 2, (70, 256), generator=torch.Generator().manual_seed(0)) * 0.75
    assert torch.equal(rounded(level, rows_OI, 64, 2).dequantise(), rows_OI)
    rows_OI[3, 5] = 0.7  # too far from 0.75 to be meant
    assert (rounded(level, rows_OI, 64, 2).dequantise()[3, :64] - rows_OI[3, :64]).abs().max() > 0.3
    rows_OI[3, 5] = 0.745
    assert (rounded(level, rows_OI, 64, 2).dequantise() - rows_OI).abs().max() < 0.006


@each_level
def test_one_bit_is_a_sign_and_the_mean_magnitude(level: str) -> None:
    row = torch.tensor([1.0, -2.0, 0.0, -0.0, 5.0, -1.0, 3.0, -4.0])
    packed = rounded(level, row[None], 8, 1)
    codes, scales = packed.unpack()
    assert codes.tolist() == [[1, 0, 1, 1, 1, 0, 1, 0]] and scales.tolist() == [[4.0]]
    assert packed.dequantise().tolist() == [[2.0, -2.0, 2.0, 2.0, 2.0, -2.0, 2.0, -2.0]]


@each_level
@each_width
def test_no_numbers_are_refused(bits: int, level: str) -> None:
    assert not no_numbers_that_pass(lambda rows_OI: rounded(level, rows_OI, 64, bits))


@each_level
@pytest.mark.parametrize(("bits", "most"), [(1, 65519 / 2), (3, 65519 * 4.0), (2, 65519 * 2.0)])
def test_scales_beyond_float16_are_refused(bits: int, most: float, level: str) -> None:
    """With one bit all weights are as large; else one of them is, and another a third of it."""
    rows_OI = torch.full((1, 64), most if bits == 1 else most / 3)
    rows_OI[0, 0] = most
    assert rounded(level, rows_OI, 64, bits).unpack()[1].abs().max() == 65504
    with pytest.raises(ValueError, match="too large: .* beyond float16's 65504; store them in bf16"):
        rounded(level, rows_OI * 1.0001, 64, bits)
    if bits == 2:
        with pytest.raises(ValueError, match="too large"):
            rounded(level, torch.full((1, 64), 65536.0), 64, bits)  # ternary: nothing is halved


def test_threads_do_not_change_bytes() -> None:
    results = []
    try:
        for count in (1, 2, 5):
            kernels.set_threads(count)
            packed = lut_linear.round_and_pack(awkward(200, 300, torch.bfloat16), group=64, bits=3)
            results.append(packed.packed)
    finally:
        kernels.set_threads(0)
    assert all(torch.equal(result, results[0]) for result in results)


@each_level
def test_nothing_is_written_beside_the_target(level: str) -> None:
    rows_OI = awkward(70, 130, torch.bfloat16)
    want = rounded(level, rows_OI, 64, 3).packed
    room = torch.full((len(want) + 128,), 0xAB, dtype=torch.uint8)
    with kernels.forced(level):
        lut_linear.round_and_pack(rows_OI, group=64, bits=3, into=room[64:-64])
    assert torch.equal(room[64:-64], want)
    assert (room[:64] == 0xAB).all() and (room[-64:] == 0xAB).all()


@pytest.mark.parametrize("level", NATIVE)
@pytest.mark.parametrize(("rows", "width", "group"), [(9, 200, 64), (1, 1, 32), (0, 33, 32), (130, 97, 1024)])
def test_tables_have_the_same_entries(rows: int, width: int, group: int, level: str) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=random) * torch.logspace(-40, 20, rows)[:, None]
    x[4:5] = 0
    with kernels.forced(kernels.REFERENCE):
        want = lut_linear.tabulate(x, group)
    assert want.entries_TJE.abs().max() <= 63 if rows else True
    with kernels.forced(level):
        got = lut_linear.tabulate(x, group)
    assert all(map(torch.equal, got, want))
    norm = Norm(torch.rand(width, generator=random), 1e-5)
    with kernels.forced(level):
        fused, apart = lut_linear.tabulate(x, group, norm), lut_linear.tabulate(apply(norm, x), group)
    assert all(map(torch.equal, fused, apart)), "a fused norm rounds otherwise"


def test_a_worked_table() -> None:
    """Entry e adds up 1, 2, 4 and 56, each with a minus unless its bit of e is set; the largest sum is 63."""
    tables = reference.tabulate(torch.tensor([[1.0, 2.0, 4.0, 56.0]]), 32)
    assert tables.scales_TG.tolist() == [[1.0]] and tables.sums_TG.tolist() == [[63]]
    want = [sum(x if e >> i & 1 else -x for i, x in enumerate((1, 2, 4, 56))) for e in range(16)]
    assert tables.entries_TJE[0, 0].tolist() == want and not tables.entries_TJE[0, 1:].any()


def whole_numbers(rows: int, width: int) -> Tensor:
    """Activations whose tables are exact: four of them add up to 63 at most, and some of each 32 do."""
    random = torch.Generator().manual_seed(rows)
    x = torch.randint(-15, 16, (rows, width), generator=random).float()
    x[:, ::32], x[:, 1::32], x[:, 2::32], x[:, 3::32] = 15, -15, 15, -18
    return x


@each_level
@each_width
@pytest.mark.parametrize(("width", "group"), [(256, 128), (416, 160), (1024, 1024), (64, 32)])
def test_integer_sums_are_exact(width: int, group: int, bits: int, level: str) -> None:
    """With every scale 1, the result is the product itself."""
    random = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 1 << bits, (96, width), generator=random, dtype=torch.uint8)
    scales = torch.ones(96, -(-width // group)).half()
    packed = lut_linear.pack(codes, scales, group=group, bits=bits)
    x = whole_numbers(11, width)
    want = x.double() @ (codes.double() - packed.zero).T
    with kernels.forced(level):
        assert torch.equal(lut_linear.lut_linear(x, here(packed)).double(), want)


@each_level
@each_width
def test_sums_fit_at_their_largest(bits: int, level: str) -> None:
    """All codes and all activations at one end: in a group as wide as can be tried, and in the least one."""
    for width, group in ((1 << 16, 1 << 16), (4096, 32)):
        for code in (0, (1 << bits) - 1):
            codes = torch.full((1, width), code, dtype=torch.uint8)
            packed = lut_linear.pack(codes, torch.ones(1, width // group).half(), group=group, bits=bits)
            for sign in (1.0, -1.0):
                x = torch.tensor([15.0, 16.0, 16.0, 16.0]).repeat(1, width // 4) * sign
                want = x.double() @ (codes.double() - packed.zero).T
                with kernels.forced(level):
                    got = lut_linear.lut_linear(x, here(packed)).double()
                assert torch.equal(got, want), (width, code, sign)


@each_level
@each_width
def test_close_to_dequantise_then_multiply(bits: int, level: str) -> None:
    """Up to the rounding of tables: a normalised mean square error below 0.001."""
    packed = weight(bits, 130, 1024, 128)
    x = torch.randn(5, 1024, generator=torch.Generator().manual_seed(1))
    want = x.double() @ packed.dequantise().double().T
    with kernels.forced(level):
        got = lut_linear.lut_linear(x, here(packed))
    assert (got - want).square().sum() <= 1e-3 * want.square().sum()


@each_level
def test_an_outlier_spoils_its_group_only(level: str) -> None:
    """Other groups' tables have scales of their own; 8 bits per token would leave them two bits or so."""
    packed = weight(4, 64, 1024, 128)
    x = torch.randn(1, 1024, generator=torch.Generator().manual_seed(1))
    with kernels.forced(level):
        calm = lut_linear.tabulate(x, 128)
        x[0, 5] = 100
        loud = lut_linear.tabulate(x, 128)
        assert torch.equal(calm.entries_TJE[:, 32:], loud.entries_TJE[:, 32:])
        want = x @ packed.dequantise().T
        assert (lut_linear.lut_linear(x, here(packed)) - want).square().sum() <= 1e-3 * want.square().sum()


@each_level
@each_width
def test_outputs_are_rows_of_the_matrix(bits: int, level: str) -> None:
    for packed in (weight(bits, 100, 70, 32), weight(bits, 100, 300, 1024)):
        for ids in (torch.tensor([99, 0, 64, 64, 7]), torch.tensor([], dtype=torch.int64)):
            with kernels.forced(level):
                assert torch.equal(lut_linear.outputs(here(packed), ids), packed.dequantise()[ids])


def test_the_result_may_lie_where_the_addend_was() -> None:
    packed = weight(2, 64, 64, 32)
    x, add = torch.randn(3, 64), torch.randn(3, 64)
    want = lut_linear.lut_linear(x, packed, add_TO=add)
    got = lut_linear.lut_linear(x, packed, add_TO=add, out_TO=add)
    assert got is add and torch.equal(got, want)


def test_bytes_are_what_the_layout_says() -> None:
    """A bit per plane, and one f16 scale per 128 inputs."""
    for bits in range(1, 5):
        assert layout.packed_bytes(640, 1024, 128, bits) * 8 == 640 * 1024 * (bits + 0.125)


NINE, WIDE = torch.zeros(9).byte(), lut_linear.wide()
BAD = {
    "rows of another width": ({"x": torch.zeros(2, 63)}, "rows of x have 63 values, the weight takes 64"),
    "another dtype": ({"x": torch.zeros(2, 64).double()}, "x must be float32"),
    "short bias": ({"bias_O": torch.zeros(63)}, "bias must be contiguous, with 64 values"),
    "another addend": ({"add_TO": torch.zeros(3, 64)}, "add must be contiguous, with 128 values"),
    "another result": ({"out_TO": torch.zeros(1, 64)}, r"out must be float32 \[2, 64\]"),
    "bytes of another shape": ({"weight": LutWeight(NINE, 64, 64, 32, 2, WIDE)}, "packed has 9"),
    "five bits": ({"weight": LutWeight(NINE, 64, 64, 32, 5, WIDE)}, "5 bits; known: 1 to 4"),
    "sums that may not fit": (
        {"weight": LutWeight(NINE, 64, (1 << 20) + 1, 32, 2, WIDE)},
        "1048577 inputs: sums of more than 1048576 may exceed 32 bits",
    ),
}


@pytest.mark.skipif(kernels.isa() == kernels.REFERENCE, reason="the native module checks")
@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(change: dict, message: str) -> None:
    arguments = {"x": torch.zeros(2, 64), "weight": weight(2, 64, 64, 32), **change}
    with pytest.raises(ValueError, match=message):
        lut_linear.lut_linear(**arguments)
