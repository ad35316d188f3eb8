"""A sum of two matrices: most weights in a few bits, and the few that rounding would hurt most as they are.

Paper   https://arxiv.org/abs/2306.03078 (SpQR)
Idea    A group's largest weight sets the step of all others. Kept apart, in bfloat16 with its place (32 bits), it
        leaves the rest a finer step. `base` is any format that rounds in groups; the sparse part is added to its
        product.
Trades  32 bits per outlier and a pass over them. Without outliers it is `base`.
Deviates  The paper weighs errors with the Hessian of a calibration set and corrects each weight for the errors of
        those before it (GPTQ). Here nothing is calibrated: errors count alike (choose_outliers takes other weights for
        them), every 64 outputs have the same number of outliers where the paper has one threshold per matrix, and the
        dense part is rounded to nearest. Its groups of 16 with scales of 3 bits are `base`'s groups here; its 16-bit
        floats are bfloat16, so that outliers of a bfloat16 checkpoint are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from headrace.kernels import sparse_add
from headrace.kernels.before import Before
from headrace.kernels.sparse_add import SparseWeight
from headrace.kernels.sparse_add.reference import MOST_WIDTH
from headrace.slots import Card
from headrace.weight.blocks import Blocks
from headrace.weight.formats import SLOT, Format
from headrace.weight.matrix import Matrix, Packing
from headrace.weight.memory import Take, huge
from headrace.weight.outliers import choose_outliers

_BLOCK = 64
"""Outputs whose outliers are chosen together."""


class _Grouped(Format, Protocol):
    """A format that rounds group by group; zeros stay zeros."""

    @property
    def group(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Spqr:
    """A format, and outliers beside it."""

    card: ClassVar[Card] = Card(
        slot="weights",
        exact="lossy",
        paper="https://arxiv.org/abs/2306.03078",
        recordable=True,
        needs=(
            ("float32", "activations are quantised from float32"),
            ("cpu", "its kernels are for processors"),
        ),
    )
    torch_products: ClassVar[bool] = False
    arithmetic: ClassVar[str] = "int8"
    base: str = "int3"
    """The format of the other weights: one that rounds in groups, with at most one option (`int3:group=64`)."""
    outliers: float = 0.01
    """Share of the weights that are kept."""
    head: str = "int8"
    """The format of embedding and head."""

    def __post_init__(self) -> None:
        if not 0 < self.outliers <= 0.25:
            raise ValueError(f"outliers={self.outliers} must be above 0 and at most 0.25")
        if not hasattr(SLOT.make(self.base), "group"):
            raise ValueError(f"base={self.base} does not round in groups: use int2 to int8, or int4_dual")

    def num_bytes(self, outputs: int, inputs: int, dtype: torch.dtype) -> int:
        rows = [_BLOCK] * (outputs // _BLOCK) + [outputs % _BLOCK]
        entries = sum(self.count(count, inputs) for count in rows)
        return self.dense().num_bytes(outputs, inputs, dtype) + 4 * entries + 4 * (outputs + 1)

    def start(self, outputs: int, inputs: int, dtype: torch.dtype, take: Take = huge) -> SpqrPacking:
        if inputs > MOST_WIDTH:
            raise ValueError(
                f"{inputs} inputs: an outlier's place has room for {MOST_WIDTH}; use --weights {self.base}"
            )
        return SpqrPacking(self, outputs, inputs, dtype, take)

    def dense(self) -> _Grouped:
        """The format of the other weights."""
        form: _Grouped = SLOT.make(self.base)
        return form

    def count(self, rows: int, inputs: int) -> int:
        """Outliers of so many rows that are chosen together."""
        return round(self.outliers * rows * inputs)


class SpqrPacking:
    """Chooses the outliers of blocks of 64 rows as soon as they are whole, and hands on the rest."""

    def __init__(self, form: Spqr, outputs: int, inputs: int, dtype: torch.dtype, take: Take) -> None:
        self._form, self._base = form, form.dense()
        self._dtype, self._inputs, self._memory = dtype, inputs, take
        self._dense: Packing = self._base.start(outputs, inputs, dtype, take)
        self._blocks = Blocks(_BLOCK, outputs, inputs, self._take)
        self._sparse: dict[int, SparseWeight] = {}
        """First row -> outliers of the rows that came with it."""

    def put(self, first: int, rows_RI: Tensor) -> None:
        self._blocks.put(first, rows_RI)

    def finish(self) -> SpqrMatrix:
        self._blocks.finish()
        parts = [self._sparse[first] for first in sorted(self._sparse)]
        counts = torch.cat([part.starts.diff() for part in parts])
        starts = torch.cat([torch.zeros(1, dtype=torch.int32), counts.cumsum(0, dtype=torch.int32)])
        entries = self._memory(sum(part.entries.nbytes for part in parts)).view(torch.int32)
        torch.cat([part.entries for part in parts], out=entries)
        return SpqrMatrix(self._dense.finish(), SparseWeight(starts, entries, self._inputs))

    def _take(self, first: int, rows_RI: Tensor) -> None:
        whole = len(rows_RI) // _BLOCK * _BLOCK
        for start, part_RI in ((0, rows_RI[:whole]), (whole, rows_RI[whole:])):
            if len(part_RI):
                self._split(first + start, part_RI)

    def _split(self, first: int, rows_RI: Tensor) -> None:
        kept_RI, parts = rows_RI.bfloat16().float(), -(-len(rows_RI) // _BLOCK)
        chosen_RI = choose_outliers(
            kept_RI,
            self._rounded,
            group=min(self._base.group or self._inputs, self._inputs),
            count=self._form.count(len(rows_RI) // parts, self._inputs),
            parts=parts,
        )
        self._sparse[first] = sparse_add.pack(kept_RI, chosen_RI)
        self._dense.put(first, rows_RI.masked_fill(chosen_RI, 0))

    def _rounded(self, rows_RI: Tensor) -> Tensor:
        packing = self._base.start(len(rows_RI), self._inputs, self._dtype)
        packing.put(0, rows_RI)
        return packing.finish().rows(torch.arange(len(rows_RI)))


class SpqrMatrix:
    """The dense part, and the sparse one."""

    __slots__ = ("dense", "nbytes", "sparse")

    def __init__(self, dense: Matrix, sparse: SparseWeight) -> None:
        self.dense = dense
        self.sparse = sparse
        self.nbytes = dense.nbytes + sparse.nbytes

    def multiply(
        self,
        x: Tensor,
        bias_O: Tensor | None = None,
        *,
        before: Before = None,
        add_TO: Tensor | None = None,
        out_TO: Tensor | None = None,
    ) -> Tensor:
        y_TO = self.dense.multiply(x, bias_O, before=before, add_TO=add_TO, out_TO=out_TO)
        return sparse_add.sparse_add(x, self.sparse, y_TO, before=before)

    def rows(self, ids_T: Tensor) -> Tensor:
        return sparse_add.put_outputs(self.sparse, ids_T, self.dense.rows(ids_T))
