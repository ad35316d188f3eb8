"""A matrix multiply with what goes before and after it. Anything called the same way may take its place.

Shape suffixes beside those of headrace/types.py: O outputs, I inputs.
"""

from __future__ import annotations

from torch import Tensor

from headrace.kernels.before import Before
from headrace.weight.matrix import Matrix


class Linear:
    """y = before(x) W^T + b + add."""

    __slots__ = ("bias_O", "matrix")

    def __init__(self, matrix: Matrix, bias_O: Tensor | None = None) -> None:
        self.matrix = matrix
        self.bias_O = bias_O

    def __call__(
        self, x: Tensor, before: Before = None, add_TO: Tensor | None = None, out_TO: Tensor | None = None
    ) -> Tensor:
        """[T, I] -> [T, O]. The result may lie in out_TO or add_TO, which the caller gives away."""
        out_TO = add_TO if out_TO is None else out_TO
        return self.matrix.multiply(x, self.bias_O, before=before, add_TO=add_TO, out_TO=out_TO)
