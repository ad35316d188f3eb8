"""Gated MLP. Paper: https://arxiv.org/abs/2002.05202."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.architecture import Activation
from headrace.kernels.before import Before
from headrace.layer.linear import Linear

ROWS = 256
"""Rows at a time: what lies between the two products is the widest thing in a forward pass, and stays in the cache."""


class GatedMlp:
    """down(act(gate(x)) * up(x)); gate and up are one matrix, gate's outputs first."""

    __slots__ = ("activation", "down", "gate_up")

    def __init__(self, activation: Activation, *, gate_up: Linear, down: Linear) -> None:
        self.activation: Activation = activation
        self.gate_up, self.down = gate_up, down

    def __call__(self, x_TD: Tensor, before: Before = None, add_TD: Tensor | None = None) -> Tensor:
        """mlp(before(x)) + add, [T, D] -> [T, D]. The result may lie in add_TD."""
        if len(x_TD) <= ROWS:
            return self.down(self.gate_up(x_TD, before), self.activation, add_TD)
        parts = x_TD.split(ROWS)
        adds = [None] * len(parts) if add_TD is None else add_TD.split(ROWS)
        return torch.cat([self(x, before, add) for x, add in zip(parts, adds, strict=True)])
