"""Linear scaling (position interpolation): divides every position by a factor.

Paper   https://arxiv.org/abs/2306.15595
Idea    A context `factor` times longer then lands on angles that the model has seen.
Trades  Longer context for blurred neighbours: nearby tokens are `factor` times harder to tell apart.
Differs No deviation; frequencies are divided, which is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from headrace.layer import rotary
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Linear:
    """All frequencies divided by one factor."""

    card: ClassVar[Card] = Card(
        slot="positions",
        exact="lossy",
        paper="https://arxiv.org/abs/2306.15595",
        recordable=True,
        breaks=(rotary.ONE_SCHEME,),
    )
    chunk: ClassVar[None] = None

    factor: float
    """How many times longer the context becomes; at least 1."""

    def __post_init__(self) -> None:
        if not self.factor >= 1:
            raise ValueError(f"factor={self.factor} must be at least 1")

    def start(
        self, head_size: int, theta: float, context: int, device: torch.device | str, dtype: torch.dtype
    ) -> rotary.Rotary:
        return rotary.tables(rotary.frequencies(head_size, theta) / self.factor, context, device, dtype)
