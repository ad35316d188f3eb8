"""Some of a model's tensors on their way through a recipe, and what their products saw of calibration text.

A piece is a block, or the two ends of the model. Its tensors are floats under the names of headrace/weight/names.py
without the block's number (attention.q.weight); what products saw goes by the stacked product (attention.qkv), as
query, key and value read the same rows.

Shape suffixes beside those of headrace/types.py: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headrace.architecture import Architecture, Block
from headrace.weight.assemble import stack_of

Tell = Callable[[str, Tensor], None]
"""Told what a stacked product reads, [T, I], and "keys", [T, G, H]; not to be kept."""


@dataclass
class Piece:
    """Tensors that a recipe may change in place."""

    architecture: Architecture
    """Of the checkpoint."""
    layer: int | None
    """None: embedding, final norm and head."""
    tensors: dict[str, Tensor]

    @property
    def block(self) -> Block:
        assert self.layer is not None, "the ends are no block"
        return self.architecture.blocks[self.layer]

    def matrices(self) -> list[str]:
        """What becomes codes: every matrix but a router, which is small and decides much."""
        return [name for name, t in self.tensors.items() if t.ndim == 2 and ".router." not in f".{name}"]


@dataclass
class Moments:
    """What the rows that a product multiplied were like."""

    count: int
    sum_I: Tensor
    """Of |x|."""
    most_I: Tensor
    """Of |x|."""
    products_II: Tensor
    """Sum of x x^T."""

    @classmethod
    def of(cls, inputs: int, dtype: torch.dtype) -> Moments:
        """Of no rows yet."""
        sum_I, most_I = torch.zeros(2, inputs, dtype=dtype)
        return cls(0, sum_I, most_I, torch.zeros(inputs, inputs, dtype=dtype))

    def add(self, x_TI: Tensor) -> None:
        if not len(x_TI):
            return
        size_TI = x_TI.abs()
        self.count += len(x_TI)
        self.sum_I += size_TI.sum(0)
        self.most_I = torch.maximum(self.most_I, size_TI.amax(0))
        self.products_II.addmm_(x_TI.T, x_TI)

    @property
    def mean_I(self) -> Tensor:
        """Of |x|; zeros of no rows."""
        return self.sum_I / max(self.count, 1)

    def divide(self, scale_I: Tensor) -> None:
        """As if every row had been divided by this."""
        self.sum_I, self.most_I = self.sum_I / scale_I, self.most_I / scale_I
        self.products_II = self.products_II / scale_I / scale_I[:, None]


@dataclass
class Seen:
    """What a block saw of the calibration text."""

    inputs: dict[str, Moments] = field(default_factory=dict)
    """By stacked product."""
    keys_GH: Tensor | None = None
    """Largest |number| of each kv head's keys, as they are stored."""

    def of(self, weight: str) -> Moments:
        """What this matrix multiplied."""
        return self.inputs[product_of(weight)]

    def expect(self, weight: str, matrix_OI: Tensor) -> None:
        """A product that rows may come to, or none."""
        self.inputs.setdefault(product_of(weight), Moments.of(matrix_OI.shape[1], matrix_OI.dtype))

    def tell(self, what: str, rows: Tensor) -> None:
        """Takes note of a product's rows [T, I], or of "keys" [T, G, H]."""
        if what == "keys":
            most_GH = rows.abs().amax(0)
            self.keys_GH = most_GH if self.keys_GH is None else torch.maximum(self.keys_GH, most_GH)
            return
        if what not in self.inputs:
            self.inputs[what] = Moments.of(rows.shape[1], rows.dtype)
        self.inputs[what].add(rows)


def product_of(name: str) -> str:
    """attention.q.weight or attention.q -> attention.qkv."""
    *path, module = name.removesuffix(".weight").split(".")
    return ".".join((*path, stack_of(module)))
