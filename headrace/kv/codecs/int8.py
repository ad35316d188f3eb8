"""Keys and values as 8-bit codes, with one scale per token and kv head for keys and one for values.

Paper   https://arxiv.org/abs/2303.06865 (FlexGen, quantised KV); https://arxiv.org/abs/2206.01861 (ZeroQuant, scales
        per token)
Idea    The largest magnitude of a token's head becomes code 127. A scale per token, so that tokens are written one by
        one and nothing that is stored is ever rounded again. Attention multiplies codes as they are: a key's scale
        enters its score, a value's its weight.
Trades  (4 + H) / H bytes per number for heads of H: little more than half of bfloat16. A number is off by at most 1/254
        of its head's largest. On the model in the box 0.00003 bits per byte more than float32, and answers as often
        right within the intervals (benchmarks/results/rounding_kv_tiny_2026-11-25.md).
Deviates  Scales are float32, so that no magnitude overflows; FlexGen has 4 bits in groups of 64, with a minimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from headrace.kv.groups import GroupSpec
from headrace.kv.paged import Paged, page_bytes
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Int8:
    """8-bit codes, whatever the model's dtype is."""

    card: ClassVar[Card] = Card(
        slot="kv-codec", exact="lossy", paper="https://arxiv.org/abs/2303.06865", recordable=True
    )

    block_tokens: ClassVar[None] = None
    rest: ClassVar[None] = None
    rotated: ClassVar[bool] = True

    def page_bytes(self, group: GroupSpec, tokens: int, dtype: torch.dtype) -> int:
        return page_bytes(group, tokens, torch.int8)

    def start(self, group: GroupSpec, page_tokens: int, dtype: torch.dtype) -> Paged:
        return Paged(group, page_tokens, dtype, torch.int8)
