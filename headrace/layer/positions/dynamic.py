"""Dynamic NTK scaling: the rotary base grows with the length of the text.

Paper   https://arxiv.org/abs/2309.00071 (section 3.3)
Idea    Up to the trained length nothing changes; beyond it the base grows just enough that the slowest pair still turns
        no further than it did in training. Fast pairs, which tell neighbours apart, hardly change.
Trades  Longer context without fine-tuning, for a growing drift beyond the trained length.
Differs The position p always uses the base for length max(p + 1, original_context), so a token's key depends neither on
        how the prompt was cut nor on what came later. Elsewhere a whole prompt shares the base of its last position;
        token-by-token decoding with a cache gives what we give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from headrace.layer import rotary
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Dynamic:
    """A base per position, beyond the original context."""

    card: ClassVar[Card] = Card(
        slot="positions",
        exact="lossy",
        paper="https://arxiv.org/abs/2309.00071",
        recordable=True,
        breaks=(rotary.ONE_SCHEME,),
    )
    chunk: ClassVar[None] = None

    factor: float
    """How strongly the base grows; at least 1."""
    original_context: int
    """Tokens that the model was trained on."""

    def __post_init__(self) -> None:
        if not self.factor >= 1 or self.original_context < 1:
            raise ValueError(
                f"factor={self.factor} and original_context={self.original_context} must be at least 1"
            )

    def start(
        self, head_size: int, theta: float, context: int, device: torch.device | str, dtype: torch.dtype
    ) -> rotary.Rotary:
        plain_F = rotary.frequencies(head_size, theta)
        if context <= self.original_context or head_size == 2:  # one pair has no slower one to protect
            return rotary.tables(plain_F, context, device, dtype)
        length_L = torch.arange(1, context + 1, dtype=torch.float64).clamp(min=self.original_context)
        growth_L = self.factor * length_L / self.original_context - (self.factor - 1)
        # the base is theta * growth ** (H / (H - 2)); raised to -2i/H it leaves growth ** (-2i / (H - 2))
        exponent_F = -torch.arange(0, head_size, 2, dtype=torch.float64) / (head_size - 2)
        return rotary.tables(plain_F * growth_L.unsqueeze(1) ** exponent_F, context, device, dtype)
