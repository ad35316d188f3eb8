"""Slot `weights`: how a weight matrix is stored, and multiplied by.

Add one: a file here with a frozen dataclass that has `card`, `head` and `start`, and a line in the index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from headrace.slots import Card, Slot

if TYPE_CHECKING:
    import torch

    from headrace.weight.matrix import Packing
    from headrace.weight.memory import Take


class Format(Protocol):
    """How weights are stored."""

    card: ClassVar[Card]
    torch_products: ClassVar[bool]
    """Whether PyTorch multiplies, and needs its threads."""
    arithmetic: ClassVar[str]
    """What bounds its products, one of headrace.limits.ARITHMETIC; empty: that of the model's dtype."""

    @property
    def head(self) -> str:
        """Spec of the format that embedding and head take; empty for this one."""
        ...

    def num_bytes(self, outputs: int, inputs: int, dtype: torch.dtype) -> int:
        """Memory of a matrix of this size. Pure. Where it depends on the weights: of those that follow a normal law."""
        ...

    def start(self, outputs: int, inputs: int, dtype: torch.dtype, take: Take = ...) -> Packing:
        """Memory for a matrix, its bulk from `take` (huge pages of main memory). `dtype` is that of the model's other
        arithmetic."""
        ...


_DUAL = "headrace.weight.formats.int_dual"
_INT = "headrace.weight.formats.int_grouped"
SLOT = Slot(
    name="weights",
    asks="how weight matrices are stored and multiplied",
    index={
        "plain": "headrace.weight.formats.plain:Plain",
        "bf16": "headrace.weight.formats.bf16:Bf16",
        "dfloat11": "headrace.weight.formats.dfloat11:Dfloat11",
        "int8": f"{_INT}:Int8",
        "int7": f"{_INT}:Int7",
        "int6": f"{_INT}:Int6",
        "int5": f"{_INT}:Int5",
        "int4": f"{_INT}:Int4",
        "int4_dual": f"{_DUAL}:Int4Dual",
        "int3": f"{_INT}:Int3",
        "int3_dual": f"{_DUAL}:Int3Dual",
        "int2": f"{_INT}:Int2",
        "spqr": "headrace.weight.formats.spqr:Spqr",
        "tmac": "headrace.weight.formats.tmac:Tmac",
    },
    default="plain",
)
