"""A matrix multiply with what goes before and after it. Anything called the same way may take its place.

Shape suffixes beside those of headrace/types.py: O outputs, I inputs.
"""

from __future__ import annotations

from torch import Tensor

from headrace.kernels.before import Before
from headrace.weight.adapter import Mix
from headrace.weight.matrix import Matrix


class Linear:
    """y = before(x) W^T + b + add, and what adapters add to their rows."""

    __slots__ = ("bias_O", "matrix", "name")

    def __init__(self, matrix: Matrix, bias_O: Tensor | None = None, name: str = "") -> None:
        """name: by which adapters know it."""
        self.matrix = matrix
        self.bias_O = bias_O
        self.name = name

    def __call__(
        self,
        x: Tensor,
        before: Before = None,
        add_TO: Tensor | None = None,
        out_TO: Tensor | None = None,
        mix: Mix | None = None,
    ) -> Tensor:
        """[T, I] -> [T, O]. The result may lie in out_TO or add_TO, which the caller gives away."""
        out_TO = add_TO if out_TO is None else out_TO
        y_TO = self.matrix.multiply(x, self.bias_O, before=before, add_TO=add_TO, out_TO=out_TO)
        if mix is not None:
            mix.add(self.name, y_TO, x, before)
        return y_TO
