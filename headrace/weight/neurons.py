"""MLPs neuron by neuron: rows of up, and down transposed, so that a neuron is a run of bytes in either.

What packed formats keep together, several outputs to a register, cannot be read one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.weight.formats import Format
from headrace.weight.memory import huge


def parts(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """The tensors that are kept so, and their shape here: neurons, width."""
    return {
        f"blocks.{i}.mlp.{part}.weight": (block.mlp.width, architecture.width)
        for i, block in enumerate(architecture.blocks)
        if block.mlp.threshold is not None
        for part in ("up", "down")
    }


class Neurons:
    """Takes rows of up and down as checkpoints have them, in any order."""

    def __init__(
        self, architecture: Architecture, form: Format, dtype: torch.dtype, device: torch.device
    ) -> None:
        """form: of the other weights; bfloat16 if its products are, else `dtype`."""
        self._parts = parts(architecture)
        self._dtype = torch.bfloat16 if form.arithmetic == "bf16" else dtype
        self._device = device
        self._tensors: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def num_bytes(self) -> int:
        """Of all of them, when they are there."""
        return sum(neurons * width for neurons, width in self._parts.values()) * self._dtype.itemsize

    def put(self, name: str, first: int, rows: Tensor) -> None:
        """Rows first, first + 1, ... of the architecture's tensor `name`; copies them."""
        if name not in self._tensors:
            self._tensors[name] = self._empty(*self._parts[name])
        if name.endswith(".down.weight"):
            self._tensors[name][:, first : first + len(rows)] = rows.T
        else:
            self._tensors[name][first : first + len(rows)] = rows

    def finish(self) -> dict[str, Tensor]:
        """[F, D] each."""
        return self._tensors

    def _empty(self, neurons: int, width: int) -> Tensor:
        if self._device.type != "cpu":
            return torch.empty(neurons, width, dtype=self._dtype, device=self._device)
        return huge(neurons * width * self._dtype.itemsize).view(self._dtype).view(neurons, width)
