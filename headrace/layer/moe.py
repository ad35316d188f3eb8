"""Mixture of experts: each row runs through the few MLPs that the router picks for it.

Papers: https://arxiv.org/abs/2401.04088 (Mixtral), https://arxiv.org/abs/2505.09388 (Qwen3).
Shape suffixes beside those of headrace/types.py: E experts, K active experts per row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headrace.kernels.before import Before, apply
from headrace.layer.linear import Linear
from headrace.layer.mlp import GatedMlp


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

    def __call__(self, x_TD: Tensor, before: Before = None, add_TD: Tensor | None = None) -> Tensor:
        """mixture(before(x)) + add, [T, D] -> [T, D]. The result may lie in add_TD."""
        x_TD = apply(before, x_TD)
        share_TK, expert_TK = self.route(x_TD)
        flat = expert_TK.flatten()
        order = flat.argsort(stable=True)  # assignments expert by expert, rows ascending within one
        row = order // self.active
        share_A1 = share_TK.flatten()[order].unsqueeze(1)
        out_TD = torch.zeros_like(x_TD)
        start = 0
        # every row sums its experts in ascending order, whatever the other rows of the batch are
        for expert, count in enumerate(torch.bincount(flat, minlength=len(self.experts)).tolist()):
            if count:
                rows = row[start : start + count]
                y_AD = self.experts[expert](x_TD[rows]) * share_A1[start : start + count]
                out_TD.index_add_(0, rows, y_AD.to(out_TD.dtype))
                start += count
        return out_TD if add_TD is None else out_TD.add_(add_TD)

    def route(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's active experts and their shares: ([T, K] float32 or float64, [T, K] int64)."""
        logits_TE = self.router(x_TD)
        share_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32)).softmax(dim=-1)
        share_TK, expert_TK = share_TE.topk(self.active, dim=-1)
        if self.renormalise:
            share_TK = share_TK / share_TK.sum(dim=-1, keepdim=True)
        return share_TK, expert_TK
