"""bfloat16 weights and activations on native kernels, summed in float32.

Paper   nobody's: it is how bfloat16 checkpoints are meant to be run
Idea    Weights are packed so that a register holds a pair of inputs of sixteen outputs, the operand of the processor's
        bfloat16 dot products and matrix tiles.
Trades  Nothing of a bfloat16 checkpoint's weights; activations are rounded to bfloat16 before each product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.kernels import bf16_linear
from headrace.kernels.bf16_linear import Bf16Weight
from headrace.kernels.bf16_linear.reference import BLOCK, packed_items
from headrace.slots import Card
from headrace.weight.blocks import Blocks, part_of
from headrace.weight.matrix import PackedMatrix
from headrace.weight.memory import Take, huge


@dataclass(frozen=True, kw_only=True)
class Bf16:
    """Packed bfloat16."""

    card: ClassVar[Card] = Card(
        slot="weights",
        exact="lossy",
        paper="how bfloat16 checkpoints are meant to be run",
        recordable=True,
        gives=("float_weights",),
        needs=(
            ("float32", "activations are rounded from float32"),
            ("cpu", "its kernels are for processors"),
        ),
    )
    torch_products: ClassVar[bool] = False
    arithmetic: ClassVar[str] = "bf16"

    @property
    def head(self) -> str:
        return ""

    def num_bytes(self, outputs: int, inputs: int, dtype: torch.dtype) -> int:
        return 2 * packed_items(outputs, inputs)

    def start(self, outputs: int, inputs: int, dtype: torch.dtype, take: Take = huge) -> Bf16Packing:
        memory = take(self.num_bytes(outputs, inputs, dtype)).view(torch.bfloat16)
        return Bf16Packing(Bf16Weight(memory, outputs, inputs))


class Bf16Packing:
    """Packs blocks of 64 rows as soon as they are whole."""

    def __init__(self, weight: Bf16Weight) -> None:
        self._weight = weight
        self._blocks = Blocks(BLOCK, weight.outputs, weight.width, self._pack)

    def put(self, first: int, rows_RI: Tensor) -> None:
        self._blocks.put(first, rows_RI)

    def finish(self) -> PackedMatrix:
        self._blocks.finish()
        return PackedMatrix(self._weight, bf16_linear.bf16_linear, bf16_linear.outputs)

    def _pack(self, first: int, rows_RI: Tensor) -> None:
        w = self._weight
        into = part_of(w.packed, first, len(rows_RI), height=BLOCK, size=packed_items(BLOCK, w.width))
        bf16_linear.pack(rows_RI, into)
