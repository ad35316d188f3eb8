"""The obvious PyTorch twin of attention, in blocks of queries so that memory does not grow with T * L."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 256
"""Queries whose scores are held at once."""


def attend(
    q_TNH: Tensor,
    k_LGH: Tensor,
    v_LGH: Tensor,
    positions_T: Tensor,
    start: int,
    scale: float,
    window: int | None,
    sink: int = 0,
) -> tuple[Tensor, Tensor]:
    """See the package. Scores and sums are float32 for half-precision inputs."""
    wide = torch.promote_types(q_TNH.dtype, torch.float32)
    kT_GHL, v_GLH = k_LGH.to(wide).permute(1, 2, 0), v_LGH.to(wide).transpose(0, 1)
    positions_L = torch.arange(start, start + len(k_LGH), device=q_TNH.device)
    blocks = [
        _attend_block(
            q_TNH[i : i + BLOCK].to(wide),
            kT_GHL,
            v_GLH,
            positions_T[i : i + BLOCK],
            positions_L,
            scale,
            window,
            sink,
        )
        for i in range(0, len(q_TNH), BLOCK)
    ]
    out_TNH = torch.cat([out for out, _ in blocks]) if len(blocks) > 1 else blocks[0][0]
    lse_TN = torch.cat([lse for _, lse in blocks]) if len(blocks) > 1 else blocks[0][1]
    return out_TNH.to(q_TNH.dtype), lse_TN


def _attend_block(
    q_TNH: Tensor,
    kT_GHL: Tensor,
    v_GLH: Tensor,
    positions_T: Tensor,
    positions_L: Tensor,
    scale: float,
    window: int | None,
    sink: int,
) -> tuple[Tensor, Tensor]:
    T, N, H = q_TNH.shape
    G = len(kT_GHL)
    q_GMH = (q_TNH * scale).view(T, G, N // G, H).permute(1, 2, 0, 3).reshape(G, -1, H)  # M = (N / G) * T
    scores_GQTL = torch.bmm(q_GMH, kT_GHL).view(G, N // G, T, -1)
    hidden_TL = positions_L > positions_T[:, None]
    if window is not None:
        hidden_TL |= (positions_L <= positions_T[:, None] - window) & (positions_L >= sink)
    scores_GQTL.masked_fill_(hidden_TL, -torch.inf)
    lse_GQT = scores_GQTL.logsumexp(-1)
    weights = (scores_GQTL - lse_GQT.clamp_min(torch.finfo(lse_GQT.dtype).min)[..., None]).exp_()
    out = torch.bmm(weights.flatten(1, 2), v_GLH).view(G, N // G, T, H)
    return out.permute(2, 0, 1, 3).reshape(T, N, H), lse_GQT.permute(2, 0, 1).reshape(T, N)


def merge(states: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """See the package."""
    lse_PTN = torch.stack([lse for _, lse in states])
    lse_TN = lse_PTN.logsumexp(0)
    weights_PTN = (lse_PTN - lse_TN.clamp_min(torch.finfo(lse_TN.dtype).min)).exp()
    out_PTNH = torch.stack([out.to(lse_TN.dtype) for out, _ in states])
    return (weights_PTN[..., None] * out_PTNH).sum(0).to(states[0][0].dtype), lse_TN
