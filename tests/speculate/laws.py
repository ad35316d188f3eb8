"""Whether counts follow a law: the chi-square test, and where the guesses of these tests come from."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-4
"""A right implementation fails once in so many seeds; the seeds are fixed."""
COMMON = 5
"""Outcomes that are expected less often count as one."""


def p_value(counts_V: Tensor, law_V: Tensor) -> float:
    """How likely counts that are at least so far off are. Outcomes that cannot be make it 0."""
    counts_V, law_V = counts_V.double(), law_V.double()
    if float(counts_V[law_V == 0].sum()) > 0:
        return 0.0
    expected_V = law_V * counts_V.sum()
    common_V = expected_V >= COMMON
    pairs = [(counts_V[common_V], expected_V[common_V])]
    if bool((law_V[~common_V] > 0).any()):
        pairs.append((counts_V[~common_V].sum()[None], expected_V[~common_V].sum()[None]))
    found, expected = (torch.cat(part) for part in zip(*pairs, strict=True))
    if len(found) == 1:
        return 1.0
    statistic = ((found - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(found) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


def law(vocab: int, seed: int, *, sharp: float = 1.5, forbidden: int = 0) -> Tensor:
    """A random law, with `forbidden` tokens that never come."""
    source = torch.Generator().manual_seed(seed)
    logits_V = sharp * torch.randn(vocab, generator=source, dtype=torch.float64)
    logits_V[torch.randperm(vocab, generator=source)[:forbidden]] = -torch.inf
    return logits_V.softmax(-1)
