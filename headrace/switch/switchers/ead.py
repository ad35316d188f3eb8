"""Lets a small model speak while it is sure, and the large one where it is not: by the mean entropy of the last tokens.

Paper   https://arxiv.org/abs/2502.06833 (Entropy Adaptive Decoding)
Idea    What is hard to say next shows in the entropy of the logits, whoever computes them. If the mean over the last
        `window` tokens reaches `threshold` bits, the large model speaks, and below it the small one, for at least
        `least` tokens each.
Trades  Answers are neither model's own. The small model's weights, keys and values lie beside the large one's, and each
        of them reads what the other one said before it can go on.
Differs At the threshold itself the large model speaks, so that 0 is the large model's text, and inf the small one's.
        Nobody owes tokens at the start: the small model reads the prompt, and who says the first token is decided like
        any other. A place counts once, with the entropy of whoever spoke there. The paper tunes its three numbers per
        pair of models; those here are no paper's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Ead:
    """A threshold, and two numbers of tokens."""

    card: ClassVar[Card] = Card(slot="switcher", exact="lossy", paper="https://arxiv.org/abs/2502.06833")
    model: str
    """The small model: a model in the box, or a folder."""
    threshold: float = 1.0
    """Bits per token, 0 to inf."""
    window: int = 5
    """Tokens that the mean is taken of; at the start, as many as there are."""
    least: int = 4
    """Tokens that a model says before the other one may."""

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold={self.threshold} must be 0 or more, in bits")
        if not 1 <= self.window <= 1024 or not 1 <= self.least <= 1024:
            raise ValueError(f"window={self.window} and least={self.least} must be 1 to 1024")

    def init(self) -> _State:
        return _State(self, large=False, spoken=self.least, entropies=())


@dataclass(frozen=True, slots=True)
class _State:
    """See the contract."""

    rule: Ead
    large: bool
    spoken: int
    """Tokens of the model whose turn it is, since it has been."""
    entropies: tuple[float, ...]
    """Bits, of the last tokens."""

    def hear(self, logits_V: Tensor) -> _State:
        """See the contract."""
        last = (*self.entropies, entropy(logits_V))[-self.rule.window :]
        wanted = math.fsum(last) / len(last) >= self.rule.threshold
        if wanted != self.large and self.spoken >= self.rule.least:
            return _State(self.rule, wanted, 0, self.entropies)
        return _State(self.rule, self.large, self.spoken + 1, last)


def entropy(logits_V: Tensor) -> float:
    """Of softmax(logits), in bits: 0 if one token is sure, log2 V if none is likelier than another."""
    logprobs_V = torch.log_softmax(logits_V.to(torch.promote_types(logits_V.dtype, torch.float32)), -1)
    return max(0.0, -float(torch.dot(logprobs_V.exp(), logprobs_V))) / math.log(2)
