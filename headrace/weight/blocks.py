"""Rows of a matrix that come in any order, handed on as whole blocks of rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from headrace.weight.matrix import PackedMatrix


class Blocks:
    """Calls `take(first, rows)` once for every block, with one block or several that follow each other.

    What does not fill a block waits, in the dtype that it came in. Rows are handed on contiguous, in float32, bfloat16
    or float16. The last block has the rows that are left.
    """

    def __init__(self, height: int, outputs: int, inputs: int, take: Callable[[int, Tensor], None]) -> None:
        self._height, self._outputs, self._inputs, self._take = height, outputs, inputs, take
        self._waiting: dict[int, tuple[Tensor, int]] = {}
        """First row -> the block's rows, and how many are there."""

    def put(self, first: int, rows_RI: Tensor) -> None:
        """Rows first, first + 1, ..."""
        rows_RI = rows_RI.contiguous().to(torch.float32 if rows_RI.dtype is torch.float64 else rows_RI.dtype)
        while len(rows_RI):
            at = first % self._height
            whole = len(rows_RI) // self._height * self._height
            if at == 0 and (whole or first + len(rows_RI) == self._outputs):
                count = whole or len(rows_RI)
                self._take(first, rows_RI[:count])
            else:
                count = min(len(rows_RI), self._rows_of(first - at) - at)
                self._wait(first - at, at, rows_RI[:count])
            first, rows_RI = first + count, rows_RI[count:]

    def finish(self) -> None:
        """Every row has been put."""
        assert not self._waiting, f"rows of {len(self._waiting)} blocks are missing"

    def _rows_of(self, first: int) -> int:
        return min(self._height, self._outputs - first)

    def _wait(self, first: int, at: int, rows_RI: Tensor) -> None:
        height = self._rows_of(first)
        new = torch.empty(height, self._inputs, dtype=rows_RI.dtype)
        rows, there = self._waiting.pop(first, (new, 0))
        rows = rows.to(torch.promote_types(rows.dtype, rows_RI.dtype))
        rows[at : at + len(rows_RI)] = rows_RI
        if there + len(rows_RI) == height:
            self._take(first, rows)
        else:
            self._waiting[first] = rows, there + len(rows_RI)


def part_of(packed: Tensor, first: int, rows: int, *, height: int, size: int) -> Tensor:
    """Where the blocks lie that rows first, first + 1, ... make: blocks of `height` rows in `size` items, one after the
    other."""
    start = first // height * size
    return packed[start : start + -(-rows // height) * size]


class BlockPacking(ABC):
    """Weights on their way into packed memory, blocks of rows as soon as they are whole: floats, which are rounded, or
    what a folder keeps of them (headrace.weight.codes.StoredPacking)."""

    def __init__(
        self, packed: Tensor, outputs: int, inputs: int, *, row_bytes: int, height: int, block_bytes: int
    ) -> None:
        """packed: uint8, blocks of `height` rows in block_bytes. row_bytes: what a folder keeps of a row."""
        self._packed, self._height, self._block_bytes = packed, height, block_bytes
        self._floats = Blocks(height, outputs, inputs, self._pack_floats)
        self._stored = Blocks(height, outputs, row_bytes, self._pack_stored)

    def put(self, first: int, rows_RI: Tensor) -> None:
        self._floats.put(first, rows_RI)

    def put_stored(self, first: int, stored_RB: Tensor) -> None:
        self._stored.put(first, stored_RB)

    def finish(self) -> PackedMatrix:
        self._floats.finish()
        self._stored.finish()
        return self.matrix()

    @abstractmethod
    def round_into(self, into: Tensor, rows_RI: Tensor) -> None:
        """Whole blocks."""

    @abstractmethod
    def store_into(self, into: Tensor, stored_RB: Tensor) -> None:
        """Whole blocks, as a folder keeps them."""

    @abstractmethod
    def matrix(self) -> PackedMatrix:
        """Every block is there."""

    def _pack_floats(self, first: int, rows_RI: Tensor) -> None:
        self.round_into(self._part(first, len(rows_RI)), rows_RI)

    def _pack_stored(self, first: int, stored_RB: Tensor) -> None:
        self.store_into(self._part(first, len(stored_RB)), stored_RB)

    def _part(self, first: int, rows: int) -> Tensor:
        return part_of(self._packed, first, rows, height=self._height, size=self._block_bytes)
