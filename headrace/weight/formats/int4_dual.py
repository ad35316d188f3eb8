"""4-bit codes with a whole-numbered step per group of inputs and one scale per output: integers all the way.

Paper   https://arxiv.org/abs/2405.04532 (QServe, QoQ: progressive group quantization), https://arxiv.org/abs/2310.04836
        (DGQ: dual grained quantization)
Idea    Weights are rounded to 8 bits with one scale per output, then group by group to 4 bits with a step of 1 to 16
        and a zero point. A product is one integer dot product over the whole width, and floats appear once per output.
Trades  Memory and bandwidth for rounding error, twice: no calibration. 4 + 8 / group bits per weight, against
        4 + 16 / group of `int4`. Activations are rounded to 8 bits per token.
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
from headrace.kernels.before import Before
from headrace.kernels.dual_linear.layout import MAX_WIDTH, DualWeight, block_bytes, packed_bytes
from headrace.kernels.int_linear.layout import BLOCK, CHUNK
from headrace.slots import Card
from headrace.weight.blocks import Blocks
from headrace.weight.memory import huge


@dataclass(frozen=True, kw_only=True)
class Int4Dual:
    """4-bit codes, dual-grained."""

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
        return packed_bytes(outputs, inputs, self._group(inputs))

    def start(self, outputs: int, inputs: int, dtype: torch.dtype, device: torch.device) -> DualPacking:
        if inputs > MAX_WIDTH:
            raise ValueError(
                f"{inputs} inputs: beyond {MAX_WIDTH}, sums may exceed 32 bits; use --weights int4"
            )
        memory = huge(self.num_bytes(outputs, inputs, dtype))
        return DualPacking(DualWeight(memory, outputs, inputs, self._group(inputs)))

    def _group(self, inputs: int) -> int:
        return min(self.group or inputs, inputs)


class DualPacking:
    """Rounds and packs blocks of 64 rows as soon as they are whole."""

    def __init__(self, weight: DualWeight) -> None:
        self._weight = weight
        self._blocks = Blocks(BLOCK, weight.outputs, weight.width, self._pack)

    def put(self, first: int, rows_RI: Tensor) -> None:
        self._blocks.put(first, rows_RI)

    def finish(self) -> DualMatrix:
        self._blocks.finish()
        return DualMatrix(self._weight)

    def _pack(self, first: int, rows_RI: Tensor) -> None:
        w = self._weight
        size = block_bytes(w.width, w.group)
        start = first // BLOCK * size
        into = w.packed[start : start + -(-len(rows_RI) // BLOCK) * size]
        dual_linear.round_and_pack(rows_RI, group=w.group, into=into)


class DualMatrix:
    """Packed codes, and the kernel that multiplies by them."""

    __slots__ = ("nbytes", "weight")

    def __init__(self, weight: DualWeight) -> None:
        self.weight = weight
        self.nbytes = weight.nbytes

    def multiply(
        self,
        x: Tensor,
        bias_O: Tensor | None = None,
        *,
        before: Before = None,
        add_TO: Tensor | None = None,
        out_TO: Tensor | None = None,
    ) -> Tensor:
        return dual_linear.dual_linear(x, self.weight, bias_O, before=before, add_TO=add_TO, out_TO=out_TO)

    def rows(self, ids_T: Tensor) -> Tensor:
        return dual_linear.outputs(self.weight, ids_T)
