"""Weights as they are, in the model's dtype, multiplied by PyTorch.

Paper   nobody's: it is what a checkpoint holds
Idea    No packing. The format that every other one is compared with.
Trades  Nothing: twice to eight times the memory of the integer formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.kernels.before import Before, apply
from headrace.slots import Card
from headrace.weight.memory import Take, huge


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Unpacked weights."""

    card: ClassVar[Card] = Card(
        slot="weights", exact="bits", paper="what a checkpoint holds", gives=("float_weights",)
    )
    torch_products: ClassVar[bool] = True
    arithmetic: ClassVar[str] = ""

    @property
    def head(self) -> str:
        return ""

    def num_bytes(self, outputs: int, inputs: int, dtype: torch.dtype) -> int:
        return outputs * inputs * dtype.itemsize

    def start(self, outputs: int, inputs: int, dtype: torch.dtype, take: Take = huge) -> PlainPacking:
        return PlainPacking(take(self.num_bytes(outputs, inputs, dtype)).view(dtype).view(outputs, inputs))


class PlainPacking:
    """Copies rows to where they stay."""

    def __init__(self, weight_OI: Tensor) -> None:
        self._weight_OI = weight_OI

    def put(self, first: int, rows_RI: Tensor) -> None:
        self._weight_OI[first : first + len(rows_RI)] = rows_RI

    def finish(self) -> PlainMatrix:
        return PlainMatrix(self._weight_OI)


class PlainMatrix:
    """A tensor, and F.linear."""

    __slots__ = ("nbytes", "weight_OI")

    def __init__(self, weight_OI: Tensor) -> None:
        self.weight_OI = weight_OI
        self.nbytes = weight_OI.nbytes

    def multiply(
        self,
        x: Tensor,
        bias_O: Tensor | None = None,
        *,
        before: Before = None,
        add_TO: Tensor | None = None,
        out_TO: Tensor | None = None,
    ) -> Tensor:
        y_TO = F.linear(apply(before, x), self.weight_OI, bias_O)
        return y_TO if add_TO is None else y_TO.add_(add_TO)

    def rows(self, ids_T: Tensor) -> Tensor:
        return F.embedding(ids_T, self.weight_OI)
