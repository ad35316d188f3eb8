"""RMS norm. Paper: https://arxiv.org/abs/1910.07467."""

from __future__ import annotations

from torch import Tensor

from headrace.kernels.before import Norm, apply


class RmsNorm:
    """x / rms(x) * (offset + weight) over the last axis, in float32 at least."""

    __slots__ = ("spec",)

    def __init__(self, weight_D: Tensor, eps: float, offset: float = 0.0) -> None:
        self.spec = Norm(weight_D, eps, offset)
        """For a product that norms its own rows."""

    def __call__(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D], same dtype."""
        return apply(self.spec, x)
