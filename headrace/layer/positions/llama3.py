"""Llama 3.1 scaling: slows the slow pairs, keeps the fast ones, blends those between.

Paper   https://arxiv.org/abs/2407.21783 (section 3.4; the formula is in Meta's published code)
Idea    A pair whose wavelength exceeds original_context / low_freq_factor is slowed by `factor`; one shorter than
        original_context / high_freq_factor stays; those between are blended by wavelength.
Trades  Longer context (the model was trained on with it), for a small drift on models that were not.
Differs No deviation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from headrace.layer import rotary
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Llama3:
    """Frequencies blended by wavelength."""

    card: ClassVar[Card] = Card(
        slot="positions",
        exact="lossy",
        paper="https://arxiv.org/abs/2407.21783",
        recordable=True,
        breaks=(rotary.ONE_SCHEME,),
    )
    chunk: ClassVar[None] = None

    factor: float
    """How many times slower the slow pairs turn; at least 1."""
    original_context: int = 8192
    """Tokens that the model was first trained on."""
    low_freq_factor: float = 1.0
    """Pairs that turn less often than this within the original context are slowed."""
    high_freq_factor: float = 4.0
    """Pairs that turn more often than this within the original context stay."""

    def __post_init__(self) -> None:
        if not self.factor >= 1 or self.original_context < 1:
            raise ValueError(
                f"factor={self.factor} and original_context={self.original_context} must be at least 1"
            )
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor={self.low_freq_factor} must be above 0, "
                f"and below high_freq_factor={self.high_freq_factor}"
            )

    def start(
        self, head_size: int, theta: float, context: int, device: torch.device | str, dtype: torch.dtype
    ) -> rotary.Rotary:
        plain_F = rotary.frequencies(head_size, theta)
        turns_F = self.original_context * plain_F / (2 * math.pi)
        keep_F = (turns_F - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        keep_F = keep_F.clamp(0, 1)
        return rotary.tables(plain_F * keep_F + plain_F / self.factor * (1 - keep_F), context, device, dtype)
