"""Integer codes of 2 to 8 bits with one scale per group of inputs, rounded to nearest; activations in 8 bits.

Paper   https://arxiv.org/abs/2308.09723 (FineQuant), https://arxiv.org/abs/2306.00978 (AWQ) for the grouped format;
        https://arxiv.org/abs/2211.10438 (SmoothQuant) for 8-bit activations per token
Idea    A group of `group` neighbouring inputs of an output shares a scale, and a zero point if asymmetric. Products
        of codes are integer dot products; one float multiply-add per group.
Trades  Memory and bandwidth for rounding error: no calibration, so 2 and 3 bits lose much. Activations are rounded to
        8 bits per token.
Deviates  The symmetric scale is the signed extreme over -2^(bits-1), as in llama.cpp's Q4_0: all codes are used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from headrace.kernels import int_linear
from headrace.kernels.int_linear.crossing import few_rows
from headrace.kernels.int_linear.layout import BLOCK, CHUNK, IntWeight, block_bytes, packed_bytes, pad
from headrace.kernels.int_linear.reference import encode, fit
from headrace.slots import Card
from headrace.weight.blocks import BlockPacking
from headrace.weight.grouped import GroupedCodes, Stored
from headrace.weight.matrix import PackedMatrix
from headrace.weight.memory import Take, huge


@dataclass(frozen=True, kw_only=True)
class IntGrouped(GroupedCodes):
    """What the widths share."""

    bits: ClassVar[int]
    card: ClassVar[Card] = Card(
        slot="weights",
        exact="lossy",
        paper="https://arxiv.org/abs/2308.09723",
        recordable=True,
        needs=(
            ("float32", "activations are quantised from float32"),
            ("cpu", "its kernels are for processors"),
        ),
    )
    torch_products: ClassVar[bool] = False
    arithmetic: ClassVar[str] = "int8"
    group: int = 128
    """Inputs that share a scale: a multiple of 32; 0 is all of them (one scale per output)."""
    asymmetric: bool = False
    """Store a zero point per group, so that the codes span from its least to its largest weight."""
    head: str = "int8"
    """The format of embedding and head."""

    def __post_init__(self) -> None:
        if self.group < 0 or self.group % CHUNK:
            raise ValueError(
                f"group={self.group} must be a multiple of {CHUNK}, or 0 for one scale per output"
            )

    def num_bytes(self, outputs: int, inputs: int, dtype: torch.dtype) -> int:
        return packed_bytes(outputs, inputs, self.group_of(inputs), self.bits, self.asymmetric)

    def start(self, outputs: int, inputs: int, dtype: torch.dtype, take: Take = huge) -> IntPacking:
        memory = take(self.num_bytes(outputs, inputs, dtype))
        return IntPacking(
            self, IntWeight(memory, outputs, inputs, self.group_of(inputs), self.bits, self.asymmetric)
        )

    def stored(self, inputs: int) -> Stored:
        """What a folder keeps."""
        zero = None if self.asymmetric else float(1 << (self.bits - 1))
        return Stored(inputs, self.group_of(inputs), self.bits, zero)

    def fit(self, group: int, rows_RC: Tensor) -> tuple[Tensor, Tensor]:
        scales, zeros = fit(pad(rows_RC, group).unflatten(1, (-1, group)), self.bits, self.asymmetric)
        return scales.squeeze(-1), zeros.squeeze(-1)

    def encode(self, rows_RC: Tensor, scale_RC: Tensor, zero_RC: Tensor) -> Tensor:
        return encode(rows_RC, scale_RC, zero_RC, self.bits)


@dataclass(frozen=True, kw_only=True)
class Int8(IntGrouped):
    """8-bit codes, by default with one scale per output."""

    bits: ClassVar[int] = 8
    group: int = 0


@dataclass(frozen=True, kw_only=True)
class Int7(IntGrouped):
    """7-bit codes."""

    bits: ClassVar[int] = 7


@dataclass(frozen=True, kw_only=True)
class Int6(IntGrouped):
    """6-bit codes."""

    bits: ClassVar[int] = 6


@dataclass(frozen=True, kw_only=True)
class Int5(IntGrouped):
    """5-bit codes."""

    bits: ClassVar[int] = 5


@dataclass(frozen=True, kw_only=True)
class Int4(IntGrouped):
    """4-bit codes."""

    bits: ClassVar[int] = 4


@dataclass(frozen=True, kw_only=True)
class Int3(IntGrouped):
    """3-bit codes."""

    bits: ClassVar[int] = 3


@dataclass(frozen=True, kw_only=True)
class Int2(IntGrouped):
    """2-bit codes."""

    bits: ClassVar[int] = 2


class IntPacking(BlockPacking):
    """See BlockPacking."""

    def __init__(self, form: IntGrouped, weight: IntWeight) -> None:
        self._form, self._weight = form, weight
        super().__init__(
            weight.packed,
            weight.outputs,
            weight.width,
            row_bytes=form.row_bytes(weight.width),
            height=BLOCK,
            block_bytes=block_bytes(weight.width, weight.group, weight.bits, weight.zeros),
        )

    def round_into(self, into: Tensor, rows_RI: Tensor) -> None:
        w = self._weight
        int_linear.round_and_pack(rows_RI, group=w.group, bits=w.bits, asymmetric=w.zeros, into=into)

    def store_into(self, into: Tensor, stored_RB: Tensor) -> None:
        w = self._weight
        codes_RI, scales_RG, zeros_RG = self._form.stored(w.width).read(stored_RB)
        int_linear.pack(codes_RI, scales_RG, zeros_RG, group=w.group, bits=w.bits, into=into)

    def matrix(self) -> PackedMatrix:
        weight = replace(self._weight, few=few_rows(self._weight))
        return PackedMatrix(weight, int_linear.int_linear, int_linear.outputs)
