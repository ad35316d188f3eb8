"""Gated MLP. Paper: https://arxiv.org/abs/2002.05202."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from headrace.architecture import Activation
from headrace.layer.linear import Linear

ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class GatedMlp:
    """down(act(gate(x)) * up(x))."""

    __slots__ = ("act", "down", "gate", "up")

    def __init__(self, activation: Activation, *, gate: Linear, up: Linear, down: Linear) -> None:
        self.act = ACTIVATIONS[activation]
        self.gate, self.up, self.down = gate, up, down

    def __call__(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.down(self.act(self.gate(x_TD)).mul_(self.up(x_TD)))
