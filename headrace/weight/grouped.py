"""Integer codes with a float16 scale per group of inputs: their grid, and the bytes that a folder keeps.

A weight is scale * (code - zero). The zero is a byte per group that is stored, or the same number for all of them.

Shape suffixes beside those of headrace/types.py: O outputs, I inputs, R some of the outputs, G groups of inputs, C some
of the inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.kernels.int_linear.reference import NOT_FINITE
from headrace.weight.codes import code_bytes, floats, read_codes, write_codes


class Parts(NamedTuple):
    """What stored rows hold."""

    codes_RI: Tensor
    """uint8."""
    scales_RG: Tensor
    """float16."""
    zeros_RG: Tensor | None
    """uint8; None where they are not stored."""


@dataclass(frozen=True)
class Rule:
    """How floats become codes."""

    fit: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Whole groups of weights, float32 [R, C] (the last one may be shorter) -> scales float16, zeros float32 [R, G].
    Raises ValueError for weights that have none."""
    encode: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Weights, their scales and zeros, [R, C] each -> the nearest codes, uint8."""


@dataclass(frozen=True)
class Stored:
    """Bytes of each output: codes, then scales, then zeros."""

    inputs: int
    group: int
    """Inputs that share a scale, at most all of them."""
    bits: int
    zero: float | None
    """Of all groups; None: each has its own."""

    @property
    def groups(self) -> int:
        return -(-self.inputs // self.group)

    @property
    def row_bytes(self) -> int:
        return code_bytes(self.inputs, self.bits) + self.groups * (3 if self.zero is None else 2)

    def grid(self, outputs: int, rule: Rule) -> GroupedGrid:
        return GroupedGrid(self, outputs, rule)

    def write(self, parts: Parts) -> Tensor:
        """uint8 [R, row_bytes]."""
        found = [write_codes(parts.codes_RI, self.bits), parts.scales_RG.view(torch.uint8)]
        return torch.cat(found if parts.zeros_RG is None else [*found, parts.zeros_RG], 1)

    def read(self, stored_RB: Tensor) -> Parts:
        """Raises ValueError for bytes that `write` does not give."""
        size, groups = code_bytes(self.inputs, self.bits), self.groups
        scales_RG = floats(stored_RB[:, size : size + 2 * groups], torch.float16)
        if not torch.isfinite(scales_RG).all():
            raise ValueError(NOT_FINITE)
        zeros_RG = stored_RB[:, size + 2 * groups :].contiguous() if self.zero is None else None
        if zeros_RG is not None and int(zeros_RG.max()) >= 1 << self.bits:
            raise ValueError(f"some zero points are beyond {self.bits} bits: the checkpoint is damaged")
        return Parts(read_codes(stored_RB[:, :size], self.inputs, self.bits), scales_RG, zeros_RG)

    def values(self, stored_RB: Tensor) -> Tensor:
        """What these rows stand for: float32 [R, I]. Raises ValueError as `read` does."""
        codes_RI, scales_RG, zeros_RG = self.read(stored_RB)
        if zeros_RG is None:
            assert self.zero is not None, "read() has found the others"
            return (codes_RI.float() - self.zero) * self._spread(scales_RG)
        return (codes_RI.float() - self._spread(zeros_RG)) * self._spread(scales_RG)

    def _spread(self, heads_RG: Tensor) -> Tensor:
        return heads_RG.float().repeat_interleave(self.group, -1)[:, : self.inputs]


class GroupedGrid:
    """See headrace/weight/codes.py."""

    def __init__(self, stored: Stored, outputs: int, rule: Rule) -> None:
        self._stored, self._rule = stored, rule
        self._codes_OI = torch.zeros(outputs, stored.inputs, dtype=torch.uint8)
        self._scales_OG = torch.zeros(outputs, stored.groups, dtype=torch.float16)
        self._zeros_OG = torch.zeros(outputs, stored.groups)

    def fit(self, first: int, rows_OC: Tensor) -> None:
        scales_OG, zeros_OG = self._rule.fit(rows_OC.float())
        at = first // self._stored.group
        groups = slice(at, at + scales_OG.shape[1])
        self._scales_OG[:, groups], self._zeros_OG[:, groups] = scales_OG, zeros_OG

    def round(self, first: int, rows_OC: Tensor) -> Tensor:
        inputs = torch.arange(first, first + rows_OC.shape[1])
        scale_OC, zero_OC = (t[:, inputs // self._stored.group] for t in (self._scales_OG, self._zeros_OG))
        codes_OC = self._rule.encode(rows_OC.float(), scale_OC, zero_OC)
        self._codes_OI[:, first : first + len(inputs)] = codes_OC
        return (codes_OC.float() - zero_OC) * scale_OC.float()

    def stored(self) -> Tensor:
        zeros_OG = self._zeros_OG.to(torch.uint8) if self._stored.zero is None else None
        return self._stored.write(Parts(self._codes_OI, self._scales_OG, zeros_OG))


class GroupedCodes(ABC):
    """What formats with such codes have in common (headrace.weight.codes.Coded)."""

    group: int

    def group_of(self, inputs: int) -> int:
        return min(self.group or inputs, inputs)

    def row_bytes(self, inputs: int) -> int:
        return self.stored(inputs).row_bytes

    def grid(self, rows_OI: Tensor, importance_I: Tensor | None = None) -> GroupedGrid:
        outputs, inputs = rows_OI.shape
        return self.stored(inputs).grid(outputs, Rule(partial(self.fit, self.group_of(inputs)), self.encode))

    def values(self, stored_RB: Tensor, inputs: int) -> Tensor:
        return self.stored(inputs).values(stored_RB)

    @abstractmethod
    def stored(self, inputs: int) -> Stored:
        """What a folder keeps."""

    @abstractmethod
    def fit(self, group: int, rows_RC: Tensor) -> tuple[Tensor, Tensor]:
        """See Rule."""

    @abstractmethod
    def encode(self, rows_RC: Tensor, scale_RC: Tensor, zero_RC: Tensor) -> Tensor:
        """See Rule."""
