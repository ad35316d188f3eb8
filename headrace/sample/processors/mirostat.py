"""Keeps the surprise of the text at a target: after each token, the cut-off moves by how far that one was off.

Paper   https://arxiv.org/abs/2007.14966 (Mirostat)
Idea    The surprise of a token is -log2 of its probability. A text whose surprise falls begins to loop, one whose rises
        to ramble. Probabilities of words fall like a power of their rank; from the likeliest hundred the power is
        estimated, from it how many tokens k have a surprise below mu. The top k stay; then mu moves towards the target.
Trades  One number instead of top-k, top-p and a temperature that suits the text. Needs the likeliest hundred, sorted.
Differs Nothing is drawn here: the engine draws. A token's surprise is the model's own, before any processor. After a
        step that failed half-way, mu begins anew: it follows from probabilities, not from the tokens alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.kernels import draw
from headrace.params import SamplingParams
from headrace.slots import Card

_RANKS = 100
_KEPT = 256
"""Tokens that can be taken back."""


@dataclass(frozen=True, kw_only=True)
class Mirostat:
    """For every request that is sampled."""

    card: ClassVar[Card] = Card(slot="processors", exact="law", paper="https://arxiv.org/abs/2007.14966")
    target: float = 3.0
    """Bits of surprise per token."""
    rate: float = 0.1
    """Share of a token's deviation by which mu moves."""

    def __post_init__(self) -> None:
        if not 0 < self.target <= 32 or not 0 < self.rate <= 1:
            raise ValueError(
                f"target={self.target} must be above 0 and at most 32, rate={self.rate} at most 1"
            )

    def init(
        self, params: SamplingParams, tokens: Sequence[int], prompt_len: int, eos: Sequence[int]
    ) -> _State | None:
        return None if params.temperature == 0 else _State(self.target, self.rate, [2 * self.target])


class _State:
    def __init__(self, target: float, rate: float, mus: list[float]) -> None:
        self._target, self._rate = target, rate
        self._mus = mus  # before each of the last tokens, and now

    def apply(self, logits_V: Tensor) -> Tensor:
        best = torch.topk(logits_V, min(_RANKS, len(logits_V))).values.double()
        return draw.top_k(logits_V, rank_of(self._mus[-1], best[best > -math.inf].tolist(), len(logits_V)))

    def accept(self, token: int, logits_V: Tensor) -> None:
        surprise = float(torch.logsumexp(logits_V.float(), -1) - logits_V[token].float()) / math.log(2)
        self._mus.append(self._mus[-1] - self._rate * (surprise - self._target))
        del self._mus[: -_KEPT - 1]

    def fork(self) -> _State:
        return _State(self._target, self._rate, list(self._mus))

    def rollback(self, count: int) -> None:
        assert count < len(self._mus), f"{count} tokens are more than can be taken back"
        del self._mus[len(self._mus) - count :]


def rank_of(mu: float, best: Sequence[float], vocab: int) -> int:
    """How many tokens have a surprise below mu, 1 to vocab: by the power law that fits the likeliest logits, sorted."""
    pairs = [
        (math.log((i + 2) / (i + 1)), a - b) for i, (a, b) in enumerate(zip(best, best[1:], strict=False))
    ]
    power = sum(t * b for t, b in pairs) / sum(t * t for t, _ in pairs) if pairs else 1.0
    excess = power - 1
    # (1 - V^-e) / e: the sum of the power law's terms, ln V where e is 0
    whole = math.log(vocab) if abs(excess) < 1e-9 else (1 - vocab**-excess) / excess
    exponent = (mu * math.log(2) - math.log(whole)) / max(power, 1e-3)
    return max(1, min(vocab, round(math.exp(min(exponent, math.log(vocab)))) + 1))
