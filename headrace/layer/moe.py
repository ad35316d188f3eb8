"""Mixture of experts: each row runs through the few MLPs that the router picks for it.

Papers: https://arxiv.org/abs/2401.04088 (Mixtral), https://arxiv.org/abs/2505.09388 (Qwen3).
Shape suffixes beside those of headrace/types.py: E experts, K active experts per row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headrace.kernels.before import Before, apply
from headrace.kernels.route import gather, group, route, scatter_add
from headrace.layer.linear import Linear
from headrace.layer.mlp import GatedMlp
from headrace.weight.adapter import Mix


class MixtureMlp:
    """Rows are grouped by expert, so that an expert's weights are read once, and only if a row wants it."""

    __slots__ = ("active", "experts", "renormalise", "router")

    def __init__(
        self, *, router: Linear, experts: Sequence[GatedMlp], active: int, renormalise: bool
    ) -> None:
        self.router = router
        self.experts = tuple(experts)
        self.active = active
        self.renormalise = renormalise

    def __call__(
        self, x_TD: Tensor, before: Before = None, add_TD: Tensor | None = None, mix: Mix | None = None
    ) -> Tensor:
        """mixture(before(x)) + add, [T, D] -> [T, D]. The result may lie in add_TD. No adapter changes experts."""
        x_TD = apply(before, x_TD)
        counts, row_A, share_A = group(*self.route(x_TD), len(self.experts))
        x_AD = gather(x_TD, row_A)
        out_TD = torch.zeros_like(x_TD)
        start = 0
        # every row sums its experts in ascending order, whatever the other rows of the batch are
        for expert, count in zip(self.experts, counts, strict=True):
            if count:
                y_AD = expert(x_AD[start : start + count])
                scatter_add(out_TD, y_AD, row_A, share_A, start)
                start += count
        return out_TD if add_TD is None else out_TD.add_(add_TD)

    def route(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's active experts and their shares: ([T, K] float32 or float64, [T, K] int64)."""
        return route(self.router(x_TD), self.active, self.renormalise)
