"""Reads a prompt with the first layers, and runs the model on the tokens that its last one attends to there.

Paper   https://arxiv.org/abs/2409.17422 (GemFilter)
Idea    Somewhere before the middle, a model has found what answers the question at the end of its prompt. So the layers
        below one read the prompt; scores of its keys with the last query, over all heads, say which `keep` tokens the
        whole model then reads, as an ordinary short prompt.
Trades  Time to the first token and memory of a long prompt, for whatever the question did not point at: a later turn
        filters the whole conversation again, for its own question.
Differs The first and the last tokens always stay: chat templates end with words that say whose turn it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from headrace.errors import ConfigError
from headrace.slots import Card
from headrace.text.shrinkers import Look, Seen, Shrinking


@dataclass(frozen=True, kw_only=True)
class GemFilter:
    """A filter layer, and how many tokens pass it."""

    card: ClassVar[Card] = Card(
        slot="shrinker",
        exact="lossy",
        paper="https://arxiv.org/abs/2409.17422",
        breaks=(
            ("positions=dca", "keys of far chunks are turned for other queries than the one it looks at"),
        ),
    )
    keep: int = 1024
    """Tokens that stay; shorter prompts stay whole."""
    layer: int | None = None
    """Whose attention decides, counted from 0; None is 0.4 of the layers (13 of 32)."""
    pool: int = 5
    """Neighbours over which scores are averaged; odd."""
    first: int = 1
    last: int = 16
    """Tokens at either end that always stay."""

    def __post_init__(self) -> None:
        if self.first < 0 or self.last < 1 or self.keep < self.first + self.last:
            raise ValueError(
                f"keep={self.keep} must be at least first={self.first} and last={self.last} together, and last 1"
            )
        if self.pool < 1 or self.pool % 2 == 0:
            raise ValueError(f"pool={self.pool} must be odd, and at least 1")
        if self.layer is not None and self.layer < 1:
            raise ValueError(f"layer={self.layer} must be at least 1: nothing is known below it")

    def shrink(self, tokens: Sequence[int], layers: int) -> Shrinking:
        layer = max(1, round(0.4 * layers)) if self.layer is None else self.layer
        if layer >= layers:
            raise ConfigError(f"gemfilter: layer={layer} is none of the model's {layers}: use a lower one")
        if len(tokens) <= self.keep:
            return range(len(tokens))
        seen = yield Look(tuple(tokens), layer)
        return self.choose(seen)

    def choose(self, seen: Seen) -> list[int]:
        """The places that stay."""
        length, kv_heads, _ = seen.keys_LGH.shape
        query_GIH = seen.query_NH.unflatten(0, (kv_heads, -1)).float()
        score_L = torch.einsum("gih,lgh->l", query_GIH, seen.keys_LGH.float())
        score_L = F.avg_pool1d(score_L[None], self.pool, stride=1, padding=self.pool // 2)[0]
        score_L[: self.first] = torch.inf
        score_L[length - self.last :] = torch.inf
        # ties go to the earlier token
        order_L = score_L.sort(descending=True, stable=True).indices
        kept: list[int] = order_L[: self.keep].sort().values.tolist()
        return kept
