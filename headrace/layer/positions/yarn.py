"""YaRN: slows only the pairs that turn too rarely to have been learnt, and sharpens attention.

Paper   https://arxiv.org/abs/2309.00071
Idea    Pairs that turn more than `beta_fast` times within the trained context stay; pairs that turn less than
        `beta_slow` times are slowed by `factor`; a ramp lies between. Cosines and sines are scaled by the attention
        factor, so that a softmax over more tokens is as sharp as before.
Trades  Longer context, at its best after a little fine-tuning, for a small drift on short texts.
Differs No deviation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.layer import rotary
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """Frequencies interpolated pair by pair."""

    card: ClassVar[Card] = Card(
        slot="positions",
        exact="lossy",
        paper="https://arxiv.org/abs/2309.00071",
        recordable=True,
        breaks=(rotary.ONE_SCHEME,),
    )
    chunk: ClassVar[None] = None

    factor: float
    """How many times longer the context becomes; at least 1."""
    original_context: int
    """Tokens that the model was trained on."""
    beta_fast: float = 32.0
    """Pairs with more turns than this within the original context stay as they are."""
    beta_slow: float = 1.0
    """Pairs with fewer turns than this are slowed by the whole factor."""
    attention_factor: float | None = None
    """Scales cosines and sines; None is 0.1 ln(factor) + 1, or a ratio of two such terms if both mscales are given."""
    mscale: float = 0.0
    """Numerator's weight of ln(factor); 0 is not given."""
    mscale_all_dim: float = 0.0
    """Denominator's weight of ln(factor); 0 is not given."""
    truncate: bool = True
    """Round the ends of the ramp outwards to whole pairs."""

    def __post_init__(self) -> None:
        if not self.factor >= 1 or self.original_context < 1:
            raise ValueError(
                f"factor={self.factor} and original_context={self.original_context} must be at least 1"
            )
        if not 0 < self.beta_slow <= self.beta_fast:
            raise ValueError(
                f"beta_slow={self.beta_slow} must be above 0, and at most beta_fast={self.beta_fast}"
            )
        if self.attention_factor is not None and not self.attention_factor > 0:
            raise ValueError(f"attention_factor={self.attention_factor} must be above 0")

    def start(
        self, head_size: int, theta: float, context: int, device: torch.device | str, dtype: torch.dtype
    ) -> rotary.Rotary:
        plain_F = rotary.frequencies(head_size, theta)
        slowed_F = self._slowed(head_size, theta)
        frequency_F = plain_F * (1 - slowed_F) + plain_F / self.factor * slowed_F
        return rotary.tables(frequency_F, context, device, dtype, scale=self._scale())

    def _slowed(self, head_size: int, theta: float) -> Tensor:
        """0 where a pair stays, 1 where it is slowed by the whole factor, a ramp between."""
        low, high = (self._pair(turns, head_size, theta) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_size - 1)
        pair_F = torch.arange(head_size // 2, dtype=torch.float64)
        return ((pair_F - low) / max(high - low, 1e-3)).clamp(0, 1)

    def _pair(self, turns: float, head_size: int, theta: float) -> float:
        """The (fractional) pair that turns this often within the original context."""
        return head_size * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    def _scale(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._temper(self.mscale) / self._temper(self.mscale_all_dim)
        return self._temper(1.0)

    def _temper(self, weight: float) -> float:
        return 0.1 * weight * math.log(self.factor) + 1.0
