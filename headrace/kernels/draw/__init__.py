"""draw: a token from a row of logits, and before that the filters that forbid the unlikely ones. Nothing is sorted.

    top_k(x_V, k)       forbid every token with k or more larger ones: ties with the k-th stay
    top_p(x_V, p)       walk from the largest logit down, lower ids first among equals; keep a token while those before
                        it have less than p of the probability
    min_p(x_V, log_p)   forbid x_v < max(x_V) + log_p
    draw(x_V, u)        the first token at which the cumulative probability, in order of ids, is above u

Forbidden is -inf. Probabilities are softmax(x_V). Where that says nothing, because a logit is NaN or +inf or all are
forbidden, top_p changes nothing and draw gives the last token; a NaN is larger than any number and stays.

The native kernels weigh a token by e^(x - max) in whole units of 2^-40. Sums of integers are exact in any order, so
a token is the same on every native level and with any number of threads. Cumulative probabilities are within 10^-6 of
float64's; what is less likely than 2^-41 times the likeliest token is not drawn.

Papers: https://arxiv.org/abs/1805.04833 (top-k), https://arxiv.org/abs/1904.09751 (top-p),
https://arxiv.org/abs/2407.01082 (min-p).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels.draw import reference

MOST_TOKENS = 1 << 22
"""Above this many, 64 bits do not hold the sum of all weights: the reference runs."""


def top_k(logits_V: Tensor, k: int) -> Tensor:
    """[V] -> [V] with the unlikely tokens forbidden, k at least 1; may overwrite its argument."""
    native = _native("draw_top_k", logits_V)
    if native is None:
        return reference.top_k(logits_V, k)
    native(logits_V, k)
    return logits_V


def top_p(logits_V: Tensor, p: float) -> Tensor:
    """[V] -> [V] with the unlikely tokens forbidden, 0 < p < 1; may overwrite its argument."""
    native = _native("draw_top_p", logits_V)
    if native is None:
        return reference.top_p(logits_V, p)
    native(logits_V, p)
    return logits_V


def min_p(logits_V: Tensor, log_p: float) -> Tensor:
    """[V] -> [V] with the unlikely tokens forbidden, log_p at most 0; may overwrite its argument."""
    native = _native("draw_min_p", logits_V)
    if native is None:
        return reference.min_p(logits_V, log_p)
    native(logits_V, log_p)
    return logits_V


def draw(logits_V: Tensor, u: float) -> int:
    """The token, 0 <= u < 1. A forbidden token is never drawn."""
    if logits_V.dtype == torch.bfloat16:
        logits_V = logits_V.float()
    native = _native("draw", logits_V)
    if native is None:
        return reference.draw(logits_V, u)
    token: int = native(logits_V, u)
    return token


def _native(operation: str, logits_V: Tensor) -> Callable[..., Any] | None:
    fits = logits_V.is_cpu and logits_V.dtype == torch.float32 and 0 < len(logits_V) <= MOST_TOKENS
    return kernels.native(operation) if fits and logits_V.is_contiguous() else None
