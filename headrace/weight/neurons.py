"""MLPs neuron by neuron: rows of up, and down transposed, so that a neuron is a run of bytes in either.

What packed formats keep together, several outputs to a register, cannot be read one by one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.weight.formats import Format
from headrace.weight.memory import Take


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
        self, architecture: Architecture, form: Format, dtype: torch.dtype, taker: Callable[[str], Take]
    ) -> None:
        """form: of the other weights; bfloat16 if its products are, else `dtype`. taker: where a tensor's memory comes
        from."""
        self._parts = parts(architecture)
        self._dtype = torch.bfloat16 if form.arithmetic == "bf16" else dtype
        self._taker = taker
        self._tensors: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def num_bytes(self, name: str) -> int:
        """Of one of them."""
        neurons, width = self._parts[name]
        return neurons * width * self._dtype.itemsize

    def put(self, name: str, first: int, rows: Tensor) -> None:
        """Rows first, first + 1, ... of the architecture's tensor `name`; copies them."""
        if name not in self._tensors:
            memory = self._taker(name)(self.num_bytes(name))
            self._tensors[name] = memory.view(self._dtype).view(self._parts[name])
        if name.endswith(".down.weight"):
            self._tensors[name][:, first : first + len(rows)] = rows.T
        else:
            self._tensors[name][first : first + len(rows)] = rows

    def finish(self) -> dict[str, Tensor]:
        """[F, D] each."""
        return self._tensors
