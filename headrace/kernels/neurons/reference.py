"""neurons in plain PyTorch: what the fast kernel is compared with."""

import torch
import torch.nn.functional as F
from torch import Tensor


def neurons(
    x_TD: Tensor, gate_TF: Tensor, up_FD: Tensor, down_FD: Tensor, threshold: float, gelu: bool
) -> Tensor:
    """What the neurons that stay add up to; the contract is in `headrace.kernels.neurons`."""
    act_TF = F.gelu(gate_TF, approximate="tanh") if gelu else F.silu(gate_TF)
    h_TF = act_TF * (x_TD @ up_FD.to(x_TD.dtype).T)
    return torch.where(act_TF.abs() < threshold, 0.0, h_TF) @ down_FD.to(x_TD.dtype)
