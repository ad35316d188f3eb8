"""A weight matrix in use, and on its way into memory: what formats make and layers call.

Shape suffixes beside those of headrace/types.py: O outputs, I inputs, R some of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from headrace.kernels.before import Before


class Matrix(Protocol):
    """Weights [O, I] ready for use."""

    nbytes: int
    """Memory that they take."""

    def multiply(
        self,
        x: Tensor,
        bias_O: Tensor | None = None,
        *,
        before: Before = None,
        add_TO: Tensor | None = None,
        out_TO: Tensor | None = None,
    ) -> Tensor:
        """before(x) W^T + bias + add, [T, I] -> [T, O] (x is [T, 2 I] where `before` is a gate).

        May write its result into out_TO, which may be add_TO; nobody else reads it. A row's result does not depend on
        the other rows.
        """
        ...

    def rows(self, ids_T: Tensor) -> Tensor:
        """Rows of the matrix, for an embedding: int64 [T] -> [T, I]."""
        ...


class PackedMatrix:
    """Packed weights, and the kernel that multiplies by them (headrace.weight.matrix.Matrix)."""

    __slots__ = ("_outputs", "_product", "nbytes", "weight")

    def __init__(
        self, weight: Any, product: Callable[..., Tensor], outputs: Callable[[Any, Tensor], Tensor]
    ) -> None:
        """product(x, weight, bias_O, before=, add_TO=, out_TO=); outputs(weight, ids_T): rows of the matrix."""
        self.weight, self.nbytes = weight, weight.nbytes
        self._product, self._outputs = product, outputs

    def multiply(
        self,
        x: Tensor,
        bias_O: Tensor | None = None,
        *,
        before: Before = None,
        add_TO: Tensor | None = None,
        out_TO: Tensor | None = None,
    ) -> Tensor:
        return self._product(x, self.weight, bias_O, before=before, add_TO=add_TO, out_TO=out_TO)

    def rows(self, ids_T: Tensor) -> Tensor:
        return self._outputs(self.weight, ids_T)


class Packing(Protocol):
    """A matrix on its way into memory, a few rows at a time, in any order."""

    def put(self, first: int, rows_RI: Tensor) -> None:
        """Takes rows first, first + 1, ...: floats of any dtype. The caller may reuse them."""
        ...

    def finish(self) -> Matrix:
        """Every row has been put."""
        ...
