"""Codes of 3 or 4 bits with a whole-numbered step per group of inputs and one scale per output: integers all the way.

Paper   https://arxiv.org/abs/2405.04532 (QServe, QoQ: progressive group quantization), https://arxiv.org/abs/2310.04836
        (DGQ: dual grained quantization)
Idea    Weights are rounded to 8 bits with one scale per output, then group by group to 4 bits with a step of 1 to 16
        and a zero point, or to 3 bits with a step of 1 to 32. A product is one integer dot product over the whole
        width, and floats appear once per output.
Trades  Memory and bandwidth for rounding error, twice: no calibration. bits + 8 / group + 32 / inputs bits per weight,
        against bits + 16 / group of `int4` and `int3`. Activations are rounded to 8 bits per token.
Deviates  Named for what is stored: with 8-bit activations `int4` is W4A8, too. Steps and zero points share a byte,
        where the papers keep a byte each: no step above 16 could arise. Scales are float32. Rotation, smoothing,
        reordering (QoQ) and the two-phase search (DGQ) are recipes for the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.kernels import dual_linear
from headrace.kernels.dual_linear.layout import (
    MAX_WIDTH,
    DualWeight,
    Parts,
    block_bytes,
    pack,
    packed_bytes,
    read_heads,
    to_w8,
    write_heads,
)
from headrace.kernels.dual_linear.reference import encode, fit_groups, fit_rows, to_bytes
from headrace.kernels.int_linear.layout import BLOCK, CHUNK, pad
from headrace.kernels.int_linear.reference import NOT_FINITE
from headrace.slots import Card
from headrace.weight.blocks import BlockPacking
from headrace.weight.codes import code_bytes, floats, read_codes, write_codes
from headrace.weight.matrix import PackedMatrix
from headrace.weight.memory import Take, huge


@dataclass(frozen=True, kw_only=True)
class IntDual:
    """What the widths share."""

    bits: ClassVar[int]
    card: ClassVar[Card] = Card(
        slot="weights",
        exact="lossy",
        paper="https://arxiv.org/abs/2405.04532",
        recordable=True,
        needs=(
            ("float32", "activations are quantised from float32"),
            ("cpu", "its kernels are for processors"),
        ),
    )
    torch_products: ClassVar[bool] = False
    arithmetic: ClassVar[str] = "int8"
    group: int = 128
    """Inputs that share a step: a multiple of 32; 0 is all of them."""
    head: str = "int8"
    """The format of embedding and head."""

    def __post_init__(self) -> None:
        if self.group < 0 or self.group % CHUNK:
            raise ValueError(
                f"group={self.group} must be a multiple of {CHUNK}, or 0 for one step per output"
            )

    def num_bytes(self, outputs: int, inputs: int, dtype: torch.dtype) -> int:
        return packed_bytes(outputs, inputs, self.group_of(inputs), self.bits)

    def start(self, outputs: int, inputs: int, dtype: torch.dtype, take: Take = huge) -> DualPacking:
        if inputs > MAX_WIDTH:
            raise ValueError(
                f"{inputs} inputs: beyond {MAX_WIDTH}, sums may exceed 32 bits; use --weights int4"
            )
        memory = take(self.num_bytes(outputs, inputs, dtype))
        return DualPacking(self, DualWeight(memory, outputs, inputs, self.group_of(inputs), self.bits))

    def group_of(self, inputs: int) -> int:
        return min(self.group or inputs, inputs)

    def row_bytes(self, inputs: int) -> int:
        """Codes, then a byte per group: step - 1 and zero point; then the output's float32 scale."""
        return code_bytes(inputs, self.bits) + -(-inputs // self.group_of(inputs)) + 4

    def grid(self, rows_OI: Tensor, importance_I: Tensor | None = None) -> DualGrid:
        return DualGrid(rows_OI, self.group_of(rows_OI.shape[1]), self.bits)

    def values(self, stored_RB: Tensor, inputs: int) -> Tensor:
        parts = self.taken_apart(stored_RB, inputs)
        return to_w8(parts, self.group_of(inputs)).float() * parts.scales_O[:, None]

    def taken_apart(self, stored_RB: Tensor, inputs: int) -> Parts:
        size = code_bytes(inputs, self.bits)
        heads_RG = stored_RB[:, size:-4]
        scales_R = floats(stored_RB[:, -4:], torch.float32).squeeze(-1)
        if not torch.isfinite(scales_R).all():
            raise ValueError(NOT_FINITE)
        codes_RI = read_codes(stored_RB[:, :size], inputs, self.bits)
        return Parts(codes_RI, *read_heads(heads_RG, self.bits), scales_R)


@dataclass(frozen=True, kw_only=True)
class Int4Dual(IntDual):
    """4-bit codes, dual-grained."""

    bits: ClassVar[int] = 4


@dataclass(frozen=True, kw_only=True)
class Int3Dual(IntDual):
    """3-bit codes, dual-grained; groups may be small, as a step takes 5 bits and a zero point 3."""

    bits: ClassVar[int] = 3
    group: int = 32


class DualGrid:
    """See headrace/weight/codes.py. The outputs' scales are those of the rows as they first were."""

    def __init__(self, rows_OI: Tensor, group: int, bits: int) -> None:
        outputs, inputs = rows_OI.shape
        self._group, self._bits, self._scale_O1 = group, bits, fit_rows(rows_OI, bits)
        self._codes_OI = torch.zeros(outputs, inputs, dtype=torch.uint8)
        self._steps_OG, self._zeros_OG = (torch.ones(outputs, -(-inputs // group)) for _ in range(2))

    def fit(self, first: int, rows_OC: Tensor) -> None:
        w8_OC = to_bytes(rows_OC.float(), self._scale_O1, self._bits)
        w8_OGI = pad(w8_OC, self._group).unflatten(1, (-1, self._group))
        step_OG1, zero_OG1 = fit_groups(w8_OGI, self._bits)
        groups = slice(first // self._group, first // self._group + w8_OGI.shape[1])
        self._steps_OG[:, groups], self._zeros_OG[:, groups] = step_OG1.squeeze(-1), zero_OG1.squeeze(-1)

    def round(self, first: int, rows_OC: Tensor) -> Tensor:
        inputs = torch.arange(first, first + rows_OC.shape[1])
        step_OC, zero_OC = (t[:, inputs // self._group] for t in (self._steps_OG, self._zeros_OG))
        codes_OC = encode(to_bytes(rows_OC.float(), self._scale_O1, self._bits), step_OC, zero_OC, self._bits)
        self._codes_OI[:, first : first + len(inputs)] = codes_OC
        return (codes_OC.float() - zero_OC) * step_OC * self._scale_O1

    def stored(self) -> Tensor:
        heads_OG = write_heads(self._steps_OG.to(torch.uint8), self._zeros_OG.to(torch.uint8), self._bits)
        return torch.cat(
            (write_codes(self._codes_OI, self._bits), heads_OG, self._scale_O1.view(torch.uint8)), 1
        )


class DualPacking(BlockPacking):
    """See BlockPacking."""

    def __init__(self, form: IntDual, weight: DualWeight) -> None:
        self._form, self._weight = form, weight
        super().__init__(
            weight.packed,
            weight.outputs,
            weight.width,
            row_bytes=form.row_bytes(weight.width),
            height=BLOCK,
            block_bytes=block_bytes(weight.width, weight.group, weight.bits),
        )

    def round_into(self, into: Tensor, rows_RI: Tensor) -> None:
        w = self._weight
        dual_linear.round_and_pack(rows_RI, group=w.group, bits=w.bits, into=into)

    def store_into(self, into: Tensor, stored_RB: Tensor) -> None:
        w = self._weight
        into.copy_(pack(self._form.taken_apart(stored_RB, w.width), w.group, w.bits))

    def matrix(self) -> PackedMatrix:
        return PackedMatrix(self._weight, dual_linear.dual_linear, dual_linear.outputs)
