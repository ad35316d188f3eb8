"""Gated MLP. Paper: https://arxiv.org/abs/2002.05202."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.architecture import Activation
from headrace.kernels.before import Before, Norm
from headrace.kernels.neurons import neurons
from headrace.layer.linear import Linear
from headrace.weight.adapter import Mix

ROWS = 256
"""Rows at a time: what lies between the two products is the widest thing in a forward pass, and stays in the cache."""


class Room:
    """Memory for what lies between the two products, kept for the next MLP.

    The C library would place something small where such a large tensor was freed, and the next one beside it: every
    step of another size would leave a hole in the heap.
    """

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: Tensor | None = None

    def take(self, rows: int, width: int, like: Tensor) -> Tensor:
        """[rows, width] of like's dtype and device, until the next call; what is in it is left from before."""
        size = rows * width
        if self._kept is None or len(self._kept) < size:
            self._kept = None  # freed before the larger one is fetched
            self._kept = like.new_empty(size)
        return self._kept[:size].view(rows, width)


class NeuronMlp:
    """The same, of a model whose neurons may leave: up and down are read only where act(gate) reaches a threshold."""

    __slots__ = ("activation", "down_FD", "gate", "room", "threshold", "up_FD")

    def __init__(
        self,
        activation: Activation,
        threshold: float,
        *,
        gate: Linear,
        up_FD: Tensor,
        down_FD: Tensor,
        room: Room,
    ) -> None:
        """up_FD, down_FD: a neuron is a row of either."""
        self.activation: Activation = activation
        self.threshold = threshold
        self.gate, self.up_FD, self.down_FD, self.room = gate, up_FD, down_FD, room

    def __call__(
        self, x_TD: Tensor, before: Norm | None = None, add_TD: Tensor | None = None, mix: Mix | None = None
    ) -> Tensor:
        """mlp(before(x)) + add, [T, D] -> [T, D]. The result may lie in add_TD. Adapters change the gate alone."""
        out_TD = torch.empty_like(x_TD) if add_TD is None else add_TD
        for first in range(0, len(x_TD), ROWS):
            rows = slice(first, first + ROWS)
            part = None if mix is None else mix.within(first, first + ROWS)
            room_TF = self.room.take(len(x_TD[rows]), len(self.up_FD), x_TD)
            gate_TF = self.gate(x_TD[rows], before, out_TO=room_TF, mix=part)
            add = None if add_TD is None else add_TD[rows]
            weights = (self.up_FD, self.down_FD, self.threshold, self.activation)
            y_TD = neurons(x_TD[rows], gate_TF, *weights, before=before, add_TD=add)
            if y_TD.data_ptr() != out_TD[rows].data_ptr():
                out_TD[rows] = y_TD
        return out_TD


class GatedMlp:
    """down(act(gate(x)) * up(x)); gate and up are one matrix, gate's outputs first."""

    __slots__ = ("activation", "down", "gate_up", "room", "width")

    def __init__(
        self, activation: Activation, *, gate_up: Linear, down: Linear, width: int, room: Room
    ) -> None:
        """width: of gate's outputs. `room` may be shared by MLPs that do not run at the same time."""
        self.activation: Activation = activation
        self.gate_up, self.down = gate_up, down
        self.width, self.room = width, room

    def __call__(
        self, x_TD: Tensor, before: Before = None, add_TD: Tensor | None = None, mix: Mix | None = None
    ) -> Tensor:
        """mlp(before(x)) + add, [T, D] -> [T, D]. The result may lie in add_TD."""
        if len(x_TD) <= ROWS:
            room_TF = self.room.take(len(x_TD), 2 * self.width, x_TD)
            y_TF = self.gate_up(x_TD, before, out_TO=room_TF, mix=mix)
            return self.down(y_TF, self.activation, add_TD, mix=mix)
        out_TD = torch.empty_like(x_TD) if add_TD is None else add_TD
        for first in range(0, len(x_TD), ROWS):
            rows = slice(first, first + ROWS)
            part = None if mix is None else mix.within(first, first + ROWS)
            y_TD = self(x_TD[rows], before, None if add_TD is None else add_TD[rows], part)
            if y_TD.data_ptr() != out_TD[rows].data_ptr():
                out_TD[rows] = y_TD
        return out_TD
