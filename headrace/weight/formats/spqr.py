"""A sum of two matrices: most weights in a few bits, and the few that rounding would hurt most as they are.

Paper   https://arxiv.org/abs/2306.03078 (SpQR)
Idea    A group's largest weight sets the step of all others. Kept apart, in bfloat16 with its place (32 bits), it
        leaves the rest a finer step. `base` is any format that rounds in groups; the sparse part is added to its
        product.
Trades  32 bits per outlier (40 in a folder, with the output that it belongs to), 32 per output, and a pass over them.
        Without outliers it is `base`.
Deviates  With the recipe `gptq` errors are fed back, and outliers chosen by what an error of theirs costs after that,
        as in the paper; but before the first is rounded, not group by group, and every 64 outputs have the same number
        of them where the paper has one threshold per matrix. Loaded with --weights, nothing is calibrated: all errors
        count alike. Groups of 16 whose scales have scales are `base`'s groups here (`int3_dual`); 16-bit floats are
        bfloat16, so that outliers of a bfloat16 checkpoint are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from headrace.kernels import outliers, sparse_add
from headrace.kernels.before import Before
from headrace.kernels.sparse_add import SparseWeight
from headrace.kernels.sparse_add.reference import MOST_WIDTH
from headrace.slots import Card
from headrace.weight.blocks import Blocks
from headrace.weight.codes import Coded, Grid, StoredPacking, floats
from headrace.weight.formats import SLOT, Format
from headrace.weight.matrix import Matrix
from headrace.weight.memory import Take, huge

_BLOCK = 64
"""Outputs whose outliers are chosen together."""
_PARTS = 16
"""Blocks that are looked at together, which bounds the scratch."""
_STORED = 5
"""Bytes of an outlier in a folder: its output, less that of the row it is stored with; its input; its weight."""
_DAMAGED = "some outliers are no numbers, or lie beyond the matrix: the checkpoint is damaged"


class _Grouped(Format, Coded, Protocol):
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
    """Share of the weights that are kept: the nearest whole number per output, on average."""
    head: str = "int8"
    """The format of embedding and head."""

    def __post_init__(self) -> None:
        if not 0 < self.outliers <= 0.25:
            raise ValueError(f"outliers={self.outliers} must be above 0 and at most 0.25")
        if not hasattr(SLOT.make(self.base), "group"):
            raise ValueError(
                f"base={self.base} does not round in groups: use int2 to int8, int3_dual, int4_dual or tmac"
            )

    def num_bytes(self, outputs: int, inputs: int, dtype: torch.dtype) -> int:
        sparse = 4 * outputs * self.each(inputs) + 4 * (outputs + 1)
        return self.dense().num_bytes(outputs, inputs, dtype) + sparse

    def start(self, outputs: int, inputs: int, dtype: torch.dtype, take: Take = huge) -> SpqrPacking:
        if inputs > MOST_WIDTH:
            raise ValueError(
                f"{inputs} inputs: an outlier's place has room for {MOST_WIDTH}; use --weights {self.base}"
            )
        dense: Any = self.dense().start(outputs, inputs, dtype, take)
        return SpqrPacking(self, outputs, inputs, dense, take)

    def group_of(self, inputs: int) -> int:
        return self.dense().group_of(inputs)

    def row_bytes(self, inputs: int) -> int:
        """Those of the dense part, then outputs, inputs and weights of outliers."""
        return self.dense().row_bytes(inputs) + _STORED * self.each(inputs)

    def grid(self, rows_OI: Tensor, importance_I: Tensor | None = None) -> SpqrGrid:
        return SpqrGrid(self, rows_OI, importance_I)

    def values(self, stored_RB: Tensor, inputs: int) -> Tensor:
        """Of all rows of a tensor: an outlier may be stored with another row than its own."""
        dense_RB, outliers_RB = self.split(stored_RB, inputs)
        values_RI = self.dense().values(dense_RB, inputs)
        places_E, weights_E = read_outliers(outliers_RB, 0, len(stored_RB), inputs)
        return values_RI.put_(places_E, weights_E.float())

    def dense(self) -> _Grouped:
        """The format of the other weights."""
        form: _Grouped = SLOT.make(self.base)
        return form

    def each(self, inputs: int) -> int:
        """Outliers of an output, on average over 64 of them."""
        return round(self.outliers * inputs)

    def split(self, stored_RB: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
        """What is stored of the dense part, and of the outliers."""
        size = self.dense().row_bytes(inputs)
        return stored_RB[:, :size], stored_RB[:, size:]

    def choose(self, rows_OI: Tensor, importance_I: Tensor | None = None) -> Tensor:
        """The outliers' places, output * inputs + input, int64 ascending, 64 outputs after 64. Raises ValueError for
        what is no number."""
        inputs, whole = rows_OI.shape[1], len(rows_OI) // _BLOCK * _BLOCK
        starts = [*range(0, whole, _PARTS * _BLOCK), whole]
        ends = [*starts[1:], len(rows_OI)]
        return torch.cat(
            [
                self._choose(rows_OI[start:end], importance_I) + start * inputs
                for start, end in zip(starts, ends, strict=True)
                if start < end
            ]
        )

    def _choose(self, rows_RI: Tensor, importance_I: Tensor | None) -> Tensor:
        """In whole blocks, or in one that is not."""
        parts, inputs = -(-len(rows_RI) // _BLOCK), rows_RI.shape[1]
        return outliers.choose(
            rows_RI.bfloat16().contiguous(),
            group=self.group_of(inputs),
            count=len(rows_RI) // parts * self.each(inputs),
            parts=parts,
            importance_I=importance_I,
        )


class SpqrGrid:
    """See headrace/weight/codes.py. Outliers are those of the rows as they first were, their weights what became of
    them."""

    def __init__(self, form: Spqr, rows_OI: Tensor, importance_I: Tensor | None) -> None:
        self._each = form.each(rows_OI.shape[1])
        self._chosen_OI = torch.zeros(rows_OI.shape, dtype=torch.bool)
        self._chosen_OI.view(-1)[form.choose(rows_OI, importance_I)] = True
        self._kept_OI = torch.zeros(rows_OI.shape, dtype=torch.bfloat16)
        self._dense: Grid = form.dense().grid(rows_OI.masked_fill(self._chosen_OI, 0))

    def fit(self, first: int, rows_OC: Tensor) -> None:
        chosen_OC = self._chosen_OI[:, first : first + rows_OC.shape[1]]
        self._dense.fit(first, rows_OC.masked_fill(chosen_OC, 0))

    def round(self, first: int, rows_OC: Tensor) -> Tensor:
        these = slice(first, first + rows_OC.shape[1])
        chosen_OC, kept_OC = self._chosen_OI[:, these], rows_OC.bfloat16()
        self._kept_OI[:, these] = kept_OC
        return torch.where(
            chosen_OC, kept_OC.float(), self._dense.round(first, rows_OC.masked_fill(chosen_OC, 0))
        )

    def stored(self) -> Tensor:
        outputs, inputs = self._chosen_OI.nonzero(as_tuple=True)
        kept = self._kept_OI[self._chosen_OI]
        with_whom = torch.arange(len(outputs)) // max(self._each, 1)
        columns = (
            (outputs - with_whom).to(torch.int8),
            inputs.to(torch.int16),
            kept,
        )
        shape = (len(self._chosen_OI), self._each)
        return torch.cat([self._dense.stored(), *(c.view(shape).view(torch.uint8) for c in columns)], 1)


def read_outliers(stored_RB: Tensor, first: int, outputs: int, width: int) -> tuple[Tensor, Tensor]:
    """What rows first, first + 1, ... hold of the outliers of a matrix [outputs, width]: places in it, counted row by
    row (int64), and weights (bfloat16). Raises ValueError for bytes that nobody stored."""
    each = stored_RB.shape[1] // _STORED
    away_RE = stored_RB[:, :each].contiguous().view(torch.int8).long()
    output_RE = away_RE + torch.arange(first, first + len(stored_RB))[:, None]
    input_RE = floats(stored_RB[:, each : 3 * each], torch.int16).long() & 0xFFFF
    weights_RE = floats(stored_RB[:, 3 * each :], torch.bfloat16)
    if (
        bool(((output_RE < 0) | (output_RE >= outputs) | (input_RE >= width)).any())
        or not torch.isfinite(weights_RE).all()
    ):
        raise ValueError(_DAMAGED)
    return (output_RE * width + input_RE).flatten(), weights_RE.flatten()


class SpqrPacking:
    """Chooses the outliers of blocks of 64 rows as soon as they are whole, and hands on the rest."""

    def __init__(self, form: Spqr, outputs: int, inputs: int, dense: StoredPacking, take: Take) -> None:
        self._form, self._dense, self._outputs, self._inputs = form, dense, outputs, inputs
        self._memory = take
        self._blocks = Blocks(_BLOCK, outputs, inputs, self._take)
        self._outliers: list[tuple[Tensor, Tensor]] = []
        """Places and weights, in any order."""

    def put(self, first: int, rows_RI: Tensor) -> None:
        self._blocks.put(first, rows_RI)

    def put_stored(self, first: int, stored_RB: Tensor) -> None:
        dense_RB, outliers_RB = self._form.split(stored_RB, self._inputs)
        self._outliers.append(read_outliers(outliers_RB, first, self._outputs, self._inputs))
        self._dense.put_stored(first, dense_RB)

    def finish(self) -> SpqrMatrix:
        self._blocks.finish()
        places_E, weights_E = (torch.cat(parts) for parts in zip(*self._outliers, strict=True))
        sparse = sparse_add.gather(places_E, weights_E, self._outputs, self._inputs)
        entries = self._memory(sparse.entries.nbytes).view(torch.int32).copy_(sparse.entries)
        return SpqrMatrix(self._dense.finish(), sparse._replace(entries=entries))

    def _take(self, first: int, rows_RI: Tensor) -> None:
        places_E = self._form.choose(rows_RI)
        rest_RI = rows_RI.clone()
        self._outliers.append((places_E + first * self._inputs, rest_RI.view(-1)[places_E].bfloat16()))
        rest_RI.view(-1)[places_E] = 0
        self._dense.put(first, rest_RI)


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
