"""Codes that a matrix's weights become: how recipes choose them, and how a folder keeps them, output by output.

A recipe asks a format for the grid of a matrix, fits its scales and rounds, in any order of inputs:

    grid = form.grid(rows_OI)                       # what these rows may become
    grid.fit(0, rows_OI)                            # scales of whole groups of inputs
    near_OI = grid.round(0, rows_OI)                # the nearest values; their codes are kept
    grid.stored()                                   # uint8 [O, form.row_bytes(I)]: what the folder gets

Shape suffixes beside those of headrace/types.py: O outputs, I inputs, G groups of inputs, C some of the inputs.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from headrace.kernels.int_linear.layout import planes
from headrace.weight.matrix import Packing


class Grid(Protocol):
    """What the rows of one matrix may become, and the codes that were chosen so far."""

    def fit(self, first: int, rows_OC: Tensor) -> None:
        """Chooses the scales of the groups that begin with input `first` and hold these weights, as rounding to nearest
        does. Raises ValueError for weights that have none."""
        ...

    def round(self, first: int, rows_OC: Tensor) -> Tensor:
        """Rounds inputs first, first + 1, ..., whose groups have their scales: the nearest values, float32."""
        ...

    def stored(self) -> Tensor:
        """Every input has been rounded: uint8 [O, row_bytes]."""
        ...


@runtime_checkable
class Coded(Protocol):
    """A format (headrace/weight/formats) whose codes may be chosen by others."""

    def group_of(self, inputs: int) -> int:
        """Inputs that share a scale."""
        ...

    def row_bytes(self, inputs: int) -> int:
        """Bytes that a folder keeps per output."""
        ...

    def grid(self, rows_OI: Tensor, importance_I: Tensor | None = None) -> Grid:
        """For these rows, or what becomes of them. importance_I: what the squared error of a weight counts for, at each
        input; None: all alike. For formats that do not treat all weights the same."""
        ...

    def values(self, stored_RB: Tensor, inputs: int) -> Tensor:
        """What the stored rows of a tensor stand for: float32 [O, I]. Raises ValueError for bytes that nobody
        stored."""
        ...


class StoredPacking(Packing, Protocol):
    """What a coded format's `start` gives."""

    def put_stored(self, first: int, stored_RB: Tensor) -> None:
        """Takes rows first, first + 1, ... as a folder keeps them. Raises ValueError for bytes that nobody stored."""
        ...


def nearest(form: Coded, rows_OI: Tensor) -> Tensor:
    """Rounded to nearest, float32: what a matrix becomes without any recipe."""
    grid = form.grid(rows_OI)
    grid.fit(0, rows_OI)
    return grid.round(0, rows_OI)


def store_nearest(form: Coded, rows_OI: Tensor) -> Tensor:
    """The same as a folder keeps it: uint8 [O, row_bytes]."""
    grid = form.grid(rows_OI)
    grid.fit(0, rows_OI)
    grid.round(0, rows_OI)
    return grid.stored()


def code_bytes(inputs: int, bits: int) -> int:
    """Bytes of so many codes: each plane (of 8, 4, 2 or 1 bits) is rounded up."""
    return sum(-(-inputs * width // 8) for width, _ in planes(bits))


def write_codes(codes_OI: Tensor, bits: int) -> Tensor:
    """uint8 codes below 2 ** bits -> uint8 [O, code_bytes]: plane after plane, the first code in the lowest bits."""
    parts = []
    for width, low in planes(bits):
        each = 8 // width
        field = (codes_OI >> low) & ((1 << width) - 1)
        field = torch.nn.functional.pad(field, (0, -field.shape[1] % each)).unflatten(1, (-1, each))
        byte = torch.zeros_like(field[..., 0])
        for place in range(each):
            byte |= field[..., place] << (place * width)
        parts.append(byte)
    return torch.cat(parts, 1)


def read_codes(stored_OB: Tensor, inputs: int, bits: int) -> Tensor:
    """The codes again: uint8 [O, I]."""
    codes_OI = torch.zeros(len(stored_OB), inputs, dtype=torch.uint8)
    at = 0
    for width, low in planes(bits):
        each, size = 8 // width, -(-inputs * width // 8)
        shifts = torch.arange(each, dtype=torch.uint8) * width
        field = (stored_OB[:, at : at + size, None] >> shifts) & ((1 << width) - 1)
        codes_OI |= field.flatten(1)[:, :inputs] << low
        at += size
    return codes_OI


def floats(stored_RB: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes of each row as floats: [R, B / itemsize]."""
    return stored_RB.flatten().clone().view(dtype).view(len(stored_RB), -1)
