"""Runs fewer layers the further a token is from its prompt: the first ones and the last ones.

Paper   https://arxiv.org/abs/2307.02628 (SkipDecode)
Idea    A prompt runs through every layer; of a generated token only `warm` layers at the bottom and some at the top do,
        fewer with every token, from `most` down to `least` over `tokens` of them. As a later token runs through no
        layer that an earlier one left out, keys and values are always there, and nothing is computed to fill holes.
Trades  Models that were not fine-tuned under this schedule lose quality quickly. Pages of generated tokens are not
        shared with later prompts: what is stored of them depends on where their prompt ended.
Differs The schedule counts from each sequence's own prompt, where the paper's batch has one position for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from headrace.architecture import Architecture
from headrace.errors import ConfigError
from headrace.slots import Card

_STORES = "a layer that is left out stores nothing of a token, and has nothing to choose from"


@dataclass(frozen=True, kw_only=True)
class SkipDecode:
    """Layers as shares of the model's."""

    card: ClassVar[Card] = Card(
        slot="skipper",
        exact="lossy",
        paper="https://arxiv.org/abs/2307.02628",
        breaks=(
            *((fact, _STORES) for fact in ("kv-codec=kvquant", "kv-keeper=d2o", "kv-layout=razor")),
            *((f"kv-selector={name}", _STORES) for name in ("landmarks", "squeezed", "vslash")),
            ("whole_blocks", "a block of tokens is stored at once, and some of them leave layers out"),
        ),
    )
    most: float = 1.0
    """Share of the layers that the first generated token runs through."""
    least: float = 0.5
    """Share that the last ones do."""
    tokens: int = 256
    """Generated tokens until then."""
    warm: int = 1
    """Layers at the bottom that always run."""

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.most <= 1:
            raise ValueError(f"least={self.least} must be above 0, and at most most={self.most}, at most 1")
        if self.tokens < 1 or self.warm < 0:
            raise ValueError(f"tokens={self.tokens} must be at least 1, and warm={self.warm} at least 0")

    def adapt(self, architecture: Architecture) -> Architecture:
        count = len(architecture.blocks)
        if self.warm > self._depth(count, self.tokens):
            raise ConfigError(
                f"skipdecode: warm={self.warm} is more than the {self._depth(count, self.tokens)} of {count} layers "
                f"that least={self.least} leaves: lower warm or raise least"
            )
        blocks = tuple(
            replace(block, reach=self._reach(count, layer)) for layer, block in enumerate(architecture.blocks)
        )
        return replace(architecture, blocks=blocks)

    def _depth(self, count: int, beyond: int) -> int:
        """Layers that run for the token `beyond` places after its prompt's last one, at least 1."""
        spent = 1.0 if beyond >= self.tokens else (beyond - 1) / (self.tokens - 1)
        share = self.most - (self.most - self.least) * spent
        return max(1, math.floor(share * count + 0.5))

    def _reach(self, count: int, layer: int) -> int | None:
        """The last place at which a layer runs: below the warm ones, layers leave from the bottom."""
        needed = count - layer + self.warm  # the depth from which on this layer is one of the topmost
        if layer < self.warm or self._depth(count, self.tokens) >= needed:
            return None
        within = (beyond for beyond in range(1, self.tokens + 1) if self._depth(count, beyond) >= needed)
        return max(within, default=0)
