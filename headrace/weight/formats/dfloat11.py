"""bfloat16 weights in about 11.3 bits, bit for bit the same: their high bytes in codes of three bits.

Paper   https://arxiv.org/abs/2504.11651 (DFloat11)
Idea    Of the 8 bits of a bfloat16 exponent, trained weights use about 2.6: most lie within a few powers of two. What
        is not redundant stays as it is, the rest becomes codes, and products decode what they are about to multiply.
Trades  Nothing of `bf16`'s tokens, which are the same bit for bit. Decoding takes time and reading less saves it: one
        row at a time gains, a few rows lose. Weights that follow no law take more than in `bf16`, up to 27 bits.
Deviates  The paper codes exponents with Huffman's code (11.0 bits), whose every step waits for the one before: on a
        processor that is slower than reading 16 bits. Here a code of three bits stands for one of the eight commonest
        high bytes (sign and upper seven bits of the exponent) of 64 outputs; one weight in sixty or so has another
        one, listed with its place (`dfloat_linear`). A block of 64 outputs is decoded by itself, 32 inputs at a time
        while they are multiplied, where the paper decodes a transformer block before it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.kernels import dfloat_linear
from headrace.kernels.bf16_linear.reference import BLOCK, CHUNK
from headrace.kernels.dfloat_linear import DfloatWeight
from headrace.kernels.dfloat_linear.reference import Parts, join, plane_bytes
from headrace.slots import Card
from headrace.weight.blocks import Blocks, part_of
from headrace.weight.matrix import PackedMatrix
from headrace.weight.memory import Take, huge

_ESCAPED = 0.018
"""Share of a normal law's weights whose high byte has no code: 0.0125 to 0.025, by where its deviation lies between two
powers of four."""


@dataclass(frozen=True, kw_only=True)
class Dfloat11:
    """bfloat16, its high bytes coded."""

    card: ClassVar[Card] = Card(
        slot="weights",
        exact="bits",
        exact_as="bf16",
        paper="https://arxiv.org/abs/2504.11651",
        recordable=True,
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
        """Of weights that follow a normal law; what others take, nobody knows before they are there."""
        blocks, chunks = -(-outputs // BLOCK), -(-inputs // CHUNK)
        escapes = round(2 * _ESCAPED * outputs * inputs) + 2 * blocks * chunks
        return plane_bytes(outputs, inputs) + escapes + 8 * (blocks + 1)

    def start(self, outputs: int, inputs: int, dtype: torch.dtype, take: Take = huge) -> Dfloat11Packing:
        return Dfloat11Packing(take, outputs, inputs)


class Dfloat11Packing:
    """Packs blocks of 64 rows as soon as they are whole."""

    def __init__(self, take: Take, outputs: int, width: int) -> None:
        self._take, self._outputs, self._width = take, outputs, width
        self._planes = take(plane_bytes(outputs, width))
        self._blocks = Blocks(BLOCK, outputs, width, self._pack)
        self._escapes: dict[int, Parts] = {}
        """First row -> what was packed with it."""

    def put(self, first: int, rows_RI: Tensor) -> None:
        self._blocks.put(first, rows_RI)

    def finish(self) -> PackedMatrix:
        self._blocks.finish()
        stretches = []
        for first in sorted(self._escapes):
            parts = self._escapes[first]
            stretches += parts.escapes.split(parts.starts_B.diff().tolist())
        escapes, starts_B = join(stretches)
        parts = Parts(self._planes, self._take(len(escapes)).copy_(escapes), starts_B)
        weight = DfloatWeight(parts, self._outputs, self._width)
        return PackedMatrix(weight, dfloat_linear.dfloat_linear, dfloat_linear.outputs)

    def _pack(self, first: int, rows_RI: Tensor) -> None:
        size = plane_bytes(BLOCK, self._width)
        planes = part_of(self._planes, first, len(rows_RI), height=BLOCK, size=size)
        self._escapes[first] = dfloat_linear.pack(rows_RI, planes).parts
