"""mask in plain PyTorch: what the fast kernels are compared with."""

import torch
from torch import Tensor


def mask(logits_V: Tensor, bits: Tensor) -> Tensor:
    """The contract is in `headrace.kernels.mask`."""
    allowed_V = (bits[:, None] >> torch.arange(8) & 1).flatten()[: len(logits_V)].bool()
    wide = torch.promote_types(logits_V.dtype, torch.float32)
    return logits_V.to(wide).masked_fill(~allowed_V.to(logits_V.device), -torch.inf)
