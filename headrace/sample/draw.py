"""Counter-based randomness: a draw depends on (seed, position, purpose), never on the batch or on earlier draws."""

from __future__ import annotations

import hashlib
import struct

from torch import Tensor

from headrace.kernels import draw as kernel


def uniform(seed: int, position: int, purpose: str) -> float:
    """A number in [0, 1) with 53 random bits."""
    return _bits(seed, position, purpose) / 2**53


def child_seed(seed: int, index: int) -> int:
    """The seed of sample `index` of a request: the seed itself for the first, unrelated ones for the others."""
    return seed if index == 0 else _bits(seed, index, "sample")


def draft_seed(seed: int) -> int:
    """The seed of a drafter's draws for a sample: unrelated to those of the sample itself."""
    return _bits(seed, 0, "draft")


def choose(logits_V: Tensor, u: float) -> int:
    """The token at which the cumulative probability of softmax(logits) passes u. Forbidden tokens are never chosen."""
    return kernel.draw(logits_V, u)


def residual(p_V: Tensor, q_V: Tensor) -> Tensor:
    """What p has more than q, as probabilities, float64: the law of a token where a guess drawn from q was refused."""
    rest_V = (p_V - q_V).clamp_min_(0)
    total = float(rest_V.sum())
    return rest_V / total if total > 0 else p_V  # equal but for rounding: nothing is ever refused


def without(law_V: Tensor, token: int) -> Tensor:
    """The law of a draw among the tokens that are left once this one is taken; all zeros if none is."""
    rest_V = law_V.clone()
    rest_V[token] = 0
    total = float(rest_V.sum())
    return rest_V / total if total > 0 else rest_V


def _bits(seed: int, counter: int, purpose: str) -> int:
    digest = hashlib.blake2b(struct.pack("<qq", seed, counter), digest_size=8, person=purpose.encode()[:16])
    return int.from_bytes(digest.digest(), "little") >> 11
