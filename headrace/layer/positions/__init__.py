"""Slot `positions`: how a token's place enters queries and keys. One is a frozen dataclass, see Positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Protocol

from headrace.slots import Card, Slot

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class LivePositions(Protocol):
    """Tables for one head size and base. Read-only: a position's rotation never depends on the rows around it."""

    scale: float
    """How much longer a vector is after rotation; 1 unless the technique sharpens attention."""

    def at(self, positions_T: Tensor) -> Callable[[Tensor], Tensor]:
        """The rotation of rows at these positions, int64 [T], each below the context; made once per step.

        It takes queries and keys, [T, N, H], rotates every head of row t and keeps shape and dtype. It may overwrite
        its argument, whose rows may lie apart."""

    def rotate(self, x_TNH: Tensor, positions_T: Tensor) -> Tensor:
        """at(positions_T) of a copy of x."""

    def undo(self, x_TNH: Tensor, positions_T: Tensor) -> Tensor:
        """What was rotated to these positions as it was before, in a tensor of its own."""


class Positions(Protocol):
    """A position scheme. Equal objects share tables between layers."""

    card: ClassVar[Card]
    chunk: int | None
    """Tokens after which keys' positions begin again (kv/chunks.py); None: a query's and a key's rotation are one."""

    def start(
        self, head_size: int, theta: float, context: int, device: torch.device | str, dtype: torch.dtype
    ) -> LivePositions:
        """Tables for positions 0 .. context - 1. Tables are float32, or float64 for a float64 model."""
        ...


SLOT = Slot(
    name="positions",
    asks="how a token's place enters its queries and keys; the checkpoint's own scheme when not given",
    index={
        "rope": "headrace.layer.positions.rope:Rope",
        "linear": "headrace.layer.positions.linear:Linear",
        "dynamic": "headrace.layer.positions.dynamic:Dynamic",
        "yarn": "headrace.layer.positions.yarn:Yarn",
        "dca": "headrace.layer.positions.dca:Dca",
        "llama3": "headrace.layer.positions.llama3:Llama3",
    },
    default="",
)
