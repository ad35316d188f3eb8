"""What dfloat11 promises beyond the contract: bf16's bits in less memory, and no step beside damaged memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels import bf16_linear, dfloat_linear
from headrace.kernels.dfloat_linear import DfloatWeight
from headrace.kernels.dfloat_linear.reference import Parts
from headrace.weight.formats import SLOT
from tests.kernels.cases.dfloat_linear import normal, rare, spread

NATIVE = kernels.available()[1:]


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32)


def every_word(outputs: int, inputs: int) -> Tensor:
    """Every bfloat16 there is, infinities and NaN among them."""
    words = torch.arange(outputs * inputs) * 40503 % 65536
    return words.to(torch.int16).view(torch.bfloat16).view(outputs, inputs)


WEIGHTS = (
    normal(130, 200).bfloat16(),
    spread(70, 97).bfloat16(),
    rare(128, 64).bfloat16(),
    every_word(256, 256),
    torch.zeros(65, 33, dtype=torch.bfloat16),
)


@pytest.mark.parametrize("weight_OI", WEIGHTS, ids=lambda w: f"{w.shape[0]}x{w.shape[1]}")
@pytest.mark.parametrize("level", kernels.available())
def test_weights_are_what_was_packed_bit_for_bit(level: str, weight_OI: Tensor) -> None:
    """And all levels pack the same bytes."""
    with kernels.forced(kernels.REFERENCE):
        want = dfloat_linear.pack(weight_OI)
    with kernels.forced(level):
        got = dfloat_linear.pack(weight_OI)
        rows_OI = dfloat_linear.outputs(got, torch.arange(len(weight_OI)))
    assert all(torch.equal(a, b) for a, b in zip(got.parts, want.parts, strict=True))
    assert torch.equal(bits(rows_OI), bits(weight_OI.float()))


@pytest.mark.parametrize("level", NATIVE)
@pytest.mark.parametrize("rows", [1, 5, 40, 200])
def test_products_are_those_of_bf16_bit_for_bit(rows: int, level: str) -> None:
    for weight_OI in WEIGHTS:
        x_TI = torch.randn(rows, weight_OI.shape[1], generator=torch.Generator().manual_seed(rows))
        with kernels.forced(level):
            got_TO = dfloat_linear.dfloat_linear(x_TI, dfloat_linear.pack(weight_OI))
            want_TO = bf16_linear.bf16_linear(x_TI, bf16_linear.pack(weight_OI))
        assert torch.equal(got_TO.isnan(), want_TO.isnan())
        assert torch.equal(bits(got_TO.nan_to_num()), bits(want_TO.nan_to_num()))


def test_normal_weights_take_seven_tenths_of_bf16() -> None:
    for deviation in (0.02, 0.03, 1.0):
        weight_OI = deviation * normal(256, 512)
        packings = [SLOT.make(spec).start(256, 512, torch.float32) for spec in ("bf16", "dfloat11")]
        for packing in packings:
            packing.put(0, weight_OI)
        dense, coded = (packing.finish().nbytes for packing in packings)
        assert 0.695 < coded / dense < 0.725


def damaged(weight: DfloatWeight) -> list[DfloatWeight]:
    """Counts that are too large or too small, gaps that lead out of a chunk, starts that lead out of the escapes."""
    found = []

    def add(part: str, place: int, value: int) -> None:
        changed = getattr(weight.parts, part).clone()
        changed[place] = value
        found.append(DfloatWeight(weight.parts._replace(**{part: changed}), weight.outputs, weight.width))

    size = len(weight.parts.escapes)
    for value in (-1, 1, size + 2, 2**62, -(2**62)):
        add("starts_B", 0, value)
        add("starts_B", 1, value)
    for place, value in ((0, 0), (0, 255), (1, 255), (1, 8)):
        add("escapes", place, value)
    full = torch.full_like(weight.parts.escapes, 255)
    found.append(DfloatWeight(weight.parts._replace(escapes=full), weight.outputs, weight.width))
    less = weight.parts._replace(escapes=weight.parts.escapes[:-1].clone())
    return [*found, DfloatWeight(less, weight.outputs, weight.width)]


@pytest.mark.parametrize("level", kernels.available())
def test_damaged_escapes_are_refused(level: str) -> None:
    weight = dfloat_linear.pack(spread(70, 97))
    for number, broken in enumerate(damaged(weight)):
        with (
            kernels.forced(level),
            pytest.raises(ValueError, match="damaged in memory: load the model again"),
        ):
            dfloat_linear.dfloat_linear(torch.ones(3, 97), broken)
            pytest.fail(f"case {number} passed")
        with kernels.forced(level), pytest.raises(ValueError, match="damaged in memory"):
            dfloat_linear.outputs(broken, torch.tensor([0, 69]))


@pytest.mark.parametrize("level", NATIVE)
def test_damaged_planes_change_numbers_and_nothing_else(level: str) -> None:
    """Any byte of them is a code and a low byte."""
    weight = dfloat_linear.pack(normal(70, 97))
    random = torch.Generator().manual_seed(0)
    planes = torch.randint(0, 256, weight.parts.planes.shape, generator=random).to(torch.uint8)
    broken = DfloatWeight(Parts(planes, *weight.parts[1:]), 70, 97)
    with kernels.forced(level):
        rows_OI = dfloat_linear.outputs(broken, torch.arange(70))
    with kernels.forced(kernels.REFERENCE):
        assert torch.equal(bits(rows_OI), bits(dfloat_linear.outputs(broken, torch.arange(70))))
