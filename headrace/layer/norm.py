"""RMS norm. Paper: https://arxiv.org/abs/1910.07467."""

from __future__ import annotations

from torch import Tensor

from headrace.kernels.rms_norm import rms_norm


class RmsNorm:
    """x / rms(x) * (offset + weight) over the last axis, in float32 at least."""

    __slots__ = ("eps", "offset", "weight_D")

    def __init__(self, weight_D: Tensor, eps: float, offset: float = 0.0) -> None:
        self.weight_D = weight_D
        self.eps = eps
        self.offset = offset

    def __call__(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D], same dtype."""
        return rms_norm(x, self.weight_D, self.eps, weight_offset=self.offset)
