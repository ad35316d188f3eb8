"""rms_norm in plain PyTorch: what the fast kernels are compared with."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float) -> Tensor:
    """Normalise the last axis of `x`; the contract is in `headrace.kernels.rms_norm`."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    x_wide = x.to(wide)
    scale = 1.0 / torch.sqrt(x_wide.square().mean(dim=-1, keepdim=True) + eps)
    return (x_wide * scale * (weight.to(wide) + weight_offset)).to(x.dtype)
