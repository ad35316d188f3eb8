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
from headrace.kernels.before import Before
from headrace.kernels.int_linear.crossing import few_rows
from headrace.kernels.int_linear.layout import BLOCK, CHUNK, IntWeight, block_bytes, packed_bytes
from headrace.slots import Card
from headrace.weight.blocks import Blocks
from headrace.weight.memory import huge


@dataclass(frozen=True, kw_only=True)
class IntGrouped:
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
        return packed_bytes(outputs, inputs, self._group(inputs), self.bits, self.asymmetric)

    def start(self, outputs: int, inputs: int, dtype: torch.dtype, device: torch.device) -> IntPacking:
        memory = huge(self.num_bytes(outputs, inputs, dtype))
        return IntPacking(IntWeight(memory, outputs, inputs, self._group(inputs), self.bits, self.asymmetric))

    def _group(self, inputs: int) -> int:
        return min(self.group or inputs, inputs)


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


class IntPacking:
    """Rounds and packs blocks of 64 rows as soon as they are whole."""

    def __init__(self, weight: IntWeight) -> None:
        self._weight = weight
        self._blocks = Blocks(BLOCK, weight.outputs, weight.width, self._pack)

    def put(self, first: int, rows_RI: Tensor) -> None:
        self._blocks.put(first, rows_RI)

    def finish(self) -> IntMatrix:
        self._blocks.finish()
        return IntMatrix(replace(self._weight, few=few_rows(self._weight)))

    def _pack(self, first: int, rows_RI: Tensor) -> None:
        w = self._weight
        size = block_bytes(w.width, w.group, w.bits, w.zeros)
        start = first // BLOCK * size
        into = w.packed[start : start + -(-len(rows_RI) // BLOCK) * size]
        int_linear.round_and_pack(rows_RI, group=w.group, bits=w.bits, asymmetric=w.zeros, into=into)


class IntMatrix:
    """Packed codes, and the kernel that multiplies by them."""

    __slots__ = ("nbytes", "weight")

    def __init__(self, weight: IntWeight) -> None:
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
        return int_linear.int_linear(x, self.weight, bias_O, before=before, add_TO=add_TO, out_TO=out_TO)

    def rows(self, ids_T: Tensor) -> Tensor:
        return int_linear.outputs(self.weight, ids_T)
