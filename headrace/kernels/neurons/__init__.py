"""neurons: the second half of a gated MLP, over the neurons that stay.

    x_TD = before(x)                                       # a norm, or nothing: as in the product that gave gate_TF
    for each row t, neuron f:
        a = act(gate_tf)
        h_tf = 0 if |a| < threshold else a * (up_f . x_t)  # up's row is read only if the neuron stays
    out_td = sum over the neurons that stay, in order: h_tf * down_fd   (+ add_td)

A neuron is a row of either matrix, so it is read as a run of bytes or not at all. A row has the same bits whatever rows
are beside it, on each native level and with any number of threads.

Paper   https://arxiv.org/abs/2404.08763 (CATS)
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels.before import Gate, Norm, apply, native_before
from headrace.kernels.neurons import reference


def neurons(
    x_TD: Tensor,
    gate_TF: Tensor,
    up_FD: Tensor,
    down_FD: Tensor,
    threshold: float,
    act: Gate,
    *,
    before: Norm | None = None,
    add_TD: Tensor | None = None,
) -> Tensor:
    """[T, D] -> [T, D], in x's dtype. gate_TF is overwritten; the result may lie in add_TD, which is given away.

    Weights are float32 or bfloat16, or of x's dtype. Raises ValueError where shapes or dtypes do not fit.
    """
    native = kernels.native("neurons") if x_TD.is_cpu and x_TD.dtype == torch.float32 else None
    if native is None:
        _check(x_TD, gate_TF, up_FD, down_FD)
        gelu = act == "gelu_tanh"
        y_TD = reference.neurons(apply(before, x_TD), gate_TF, up_FD, down_FD, threshold, gelu)
        return y_TD if add_TD is None else add_TD.add_(y_TD)
    out_TD = torch.empty_like(x_TD) if add_TD is None else add_TD
    native(
        x_TD, gate_TF, up_FD, down_FD, out_TD, add_TD, threshold, act == "gelu_tanh", *native_before(before)
    )
    return out_TD


def _check(x_TD: Tensor, gate_TF: Tensor, up_FD: Tensor, down_FD: Tensor) -> None:
    if up_FD.shape != down_FD.shape or up_FD.ndim != 2:
        raise ValueError(f"up is {tuple(up_FD.shape)} and down {tuple(down_FD.shape)}: both must be [F, D]")
    if x_TD.shape[1] != up_FD.shape[1] or gate_TF.shape != (len(x_TD), len(up_FD)):
        raise ValueError(
            f"x is {tuple(x_TD.shape)} and gate {tuple(gate_TF.shape)}: up is {tuple(up_FD.shape)}"
        )
