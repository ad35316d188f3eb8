"""Random weights of a given architecture: for tests, and for measuring the speed of a shape without a download."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.weight import memory
from headrace.weight.assemble import Assembly, Weights, make
from headrace.weight.formats import Format
from headrace.weight.load import check_dtype
from headrace.weight.names import Shape, shapes

_POOL = 1_000_003  # draws per tensor; prime, so that a longer tensor repeats them at a different column in every row
SLAB = 1 << 18
"""Numbers that are drawn at a time."""
_SPREAD = 3.0  # standard deviation of the logits


def random_weights(
    architecture: Architecture,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    form: Format | None = None,
) -> Weights:
    """Weights that keep activations near 1 and give logits a standard deviation of about 3.

    The same seed gives the same values in every dtype and format, up to rounding. Raises ModelError if they do not fit
    in memory.
    """
    check_dtype(dtype)
    assembly = Assembly(architecture, form or make(), dtype, device)
    memory.require(assembly.num_bytes(), device, f"a random {architecture.family} as {dtype}")
    for draw in _draws(architecture, seed):
        rows = max(1, SLAB // math.prod(draw.shape[1:]))
        for first in range(0, draw.shape[0], rows):
            assembly.put(draw.name, first, draw.rows(first, min(first + rows, draw.shape[0]), dtype))
    return assembly.finish()


def random_tensors(architecture: Architecture, seed: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The same, tensor after tensor as a checkpoint has them."""
    for draw in _draws(architecture, seed):
        yield draw.name, draw.rows(0, draw.shape[0], dtype)


@dataclass(frozen=True)
class _Draw:
    """One tensor: its values are `pool`, over and over."""

    name: str
    shape: Shape
    pool: Tensor

    def rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        out = torch.empty((last - first, *self.shape[1:]), dtype=dtype)
        flat, at = out.view(-1), first * math.prod(self.shape[1:]) % len(self.pool)
        done = 0
        while done < len(flat):
            count = min(len(flat) - done, len(self.pool) - at)
            flat[done : done + count].copy_(self.pool[at : at + count])
            done, at = done + count, 0
        return out


def _draws(architecture: Architecture, seed: int) -> Iterator[_Draw]:
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes(architecture).items():
        mean, deviation = _law(name, shape, architecture)
        count = min(math.prod(shape), _POOL)
        pool = torch.randn(count, generator=generator, dtype=torch.float64) * deviation + mean
        yield _Draw(name, shape, pool)


def _law(name: str, shape: Shape, architecture: Architecture) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's values."""
    mean, deviation = 0.0, shape[-1] ** -0.5
    if name == "head.weight" or (name == "embed.weight" and architecture.tied_head):
        deviation *= _SPREAD
    elif name == "embed.weight":
        deviation = 1.0 / architecture.embedding_scale
    elif name.endswith("norm.weight"):
        mean, deviation = 1.0 - architecture.norm_offset, 0.1
    elif name.endswith(".bias"):
        deviation = 0.1
    return mean, deviation
