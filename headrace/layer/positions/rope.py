"""RoPE: rotates pairs of dimensions by an angle proportional to the position.

Paper   https://arxiv.org/abs/2104.09864
Idea    A score q . k of rotated vectors depends on the distance between them alone.
Trades  Nothing: it is what most checkpoints are trained with. Quality falls beyond the trained length.
Differs No deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from headrace.layer import rotary
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Plain rotary positions."""

    card: ClassVar[Card] = Card(
        slot="positions",
        exact="lossy",
        paper="https://arxiv.org/abs/2104.09864",
        recordable=True,
        breaks=(rotary.ONE_SCHEME,),
    )
    chunk: ClassVar[None] = None

    def start(
        self, head_size: int, theta: float, context: int, device: torch.device | str, dtype: torch.dtype
    ) -> rotary.Rotary:
        return rotary.tables(rotary.frequencies(head_size, theta), context, device, dtype)
