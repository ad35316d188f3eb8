"""Bit planes of 1 to 4 bits, multiplied by looking up sums of activations; one scale per group of inputs.

Paper   https://arxiv.org/abs/2407.00088 (T-MAC), https://arxiv.org/abs/2408.06003 (LUT Tensor Core)
Idea    Four bits of a plane name one of the 16 sums that four activations and their negatives have. These sums are
        tabulated once per token, in 7 bits; a plane is then read, looked up and added, whatever bit it stands for.
Trades  Time is linear in bits, down to one. Tables round the activations: to fewer steps than `int4` does, but with a
        scale for each group of inputs. No calibration, so few bits lose much.
Deviates  The codes are those of `int4`, `int3` and `int2`, with a zero among them, where the paper takes numbers that
        are symmetric about 0: a table's last entry, summed up, makes up for it. Groups of a ternary model's weights
        get the scale that keeps them; one bit is a sign and the mean magnitude. Planes lie so that one instruction
        weighs and widens neighbouring bytes. Entries have 7 bits instead of 8: two of them are added before that. Sums
        are exact; the paper's averages, which are not, are left out. Tile sizes are fixed, not searched for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.kernels import lut_linear
from headrace.kernels.int_linear.layout import BLOCK, CHUNK
from headrace.kernels.lut_linear.layout import (
    MAX_BITS,
    MAX_WIDTH,
    LutWeight,
    block_bytes,
    packed_bytes,
    zero_of,
)
from headrace.kernels.lut_linear.reference import encode, fit
from headrace.slots import Card
from headrace.weight.blocks import BlockPacking
from headrace.weight.grouped import GroupedCodes, Stored
from headrace.weight.matrix import PackedMatrix
from headrace.weight.memory import Take, huge


@dataclass(frozen=True, kw_only=True)
class Tmac(GroupedCodes):
    """Bit planes and tables."""

    card: ClassVar[Card] = Card(
        slot="weights",
        exact="lossy",
        paper="https://arxiv.org/abs/2407.00088",
        recordable=True,
        needs=(
            ("float32", "tables are made of float32 activations"),
            ("cpu", "its kernels are for processors"),
        ),
    )
    torch_products: ClassVar[bool] = False
    arithmetic: ClassVar[str] = "int8"
    bits: int = 2
    """Planes, 1 to 4: 2 hold a ternary model as it is; 1 is a sign."""
    group: int = 128
    """Inputs that share a scale: a multiple of 32; 0 is all of them (one scale per output)."""
    head: str = "int8"
    """The format of embedding and head."""

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MAX_BITS:
            raise ValueError(f"bits={self.bits} must be 1 to {MAX_BITS}; use int5 to int8 for more")
        if self.group < 0 or self.group % CHUNK:
            raise ValueError(
                f"group={self.group} must be a multiple of {CHUNK}, or 0 for one scale per output"
            )

    def num_bytes(self, outputs: int, inputs: int, dtype: torch.dtype) -> int:
        return packed_bytes(outputs, inputs, self.group_of(inputs), self.bits)

    def start(self, outputs: int, inputs: int, dtype: torch.dtype, take: Take = huge) -> LutPacking:
        if inputs > MAX_WIDTH:
            raise ValueError(
                f"{inputs} inputs: beyond {MAX_WIDTH}, sums may exceed 32 bits; use --weights int4"
            )
        memory = take(self.num_bytes(outputs, inputs, dtype))
        return LutPacking(
            self, LutWeight(memory, outputs, inputs, self.group_of(inputs), self.bits, lut_linear.wide())
        )

    def stored(self, inputs: int) -> Stored:
        """What a folder keeps."""
        return Stored(inputs, self.group_of(inputs), self.bits, zero_of(self.bits))

    def fit(self, group: int, rows_RC: Tensor) -> tuple[Tensor, Tensor]:
        scales = fit(rows_RC, group, self.bits)
        return scales, torch.full(scales.shape, zero_of(self.bits))

    def encode(self, rows_RC: Tensor, scale_RC: Tensor, zero_RC: Tensor) -> Tensor:
        return encode(rows_RC, scale_RC, self.bits)


class LutPacking(BlockPacking):
    """See BlockPacking."""

    def __init__(self, form: Tmac, weight: LutWeight) -> None:
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
        lut_linear.round_and_pack(rows_RI, group=w.group, bits=w.bits, into=into)

    def store_into(self, into: Tensor, stored_RB: Tensor) -> None:
        w = self._weight
        parts = self._form.stored(w.width).read(stored_RB)
        lut_linear.pack(parts.codes_RI, parts.scales_RG, group=w.group, bits=w.bits, into=into)

    def matrix(self) -> PackedMatrix:
        return PackedMatrix(self._weight, lut_linear.lut_linear, lut_linear.outputs)
