"""Random weights of a given architecture: for tests, and for measuring the speed of a shape without a download."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.weight import memory
from headrace.weight.assemble import Assembly, Weights, make
from headrace.weight.formats import Format
from headrace.weight.load import Progress, check_dtype
from headrace.weight.names import Shape, shapes
from headrace.weight.tiers import Tier

_POOL = 262_147
"""Draws per tensor; prime, so that a longer tensor repeats them at a different column in every row."""
SLAB = 1 << 19
"""Numbers that are packed at a time, more or less."""
_WHOLE = 64  # rows in a slab are a multiple of this, as packed formats like it
_SPREAD = 3.0  # standard deviation of the logits


def random_weights(
    architecture: Architecture,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    *,
    form: Format | None = None,
    tier: Tier | None = None,
) -> Weights:
    """Weights that keep activations near 1 and give logits a standard deviation of about 3.

    The same seed gives the same values in every dtype and format, up to rounding. Raises ModelError if they do not fit
    in memory, and ConfigError for a tier that does not suit the model.
    """
    check_dtype(dtype)
    assembly = Assembly(architecture, form or make(), dtype, device, tier)
    memory.require(assembly.num_bytes(), device, f"a random {architecture.family} as {dtype}")
    total, done = sum(math.prod(shape) for shape in shapes(architecture).values()) * dtype.itemsize, 0
    slabs = {name: _slab(shape) for name, shape in shapes(architecture).items()}
    room = torch.empty(_POOL + max(rows * inputs for rows, inputs in slabs.values()), dtype=dtype)
    for name, shape, pool in _draws(architecture, seed):
        most, inputs = slabs[name]
        values = _repeat(pool, room[: len(pool) + most * inputs])
        for first in range(0, shape[0], most):
            count, at = min(most, shape[0] - first), first * inputs % len(pool)
            rows = values[at : at + count * inputs].view(count, *shape[1:])
            assembly.put(name, first, rows)
            done += rows.nbytes
            if progress is not None:
                progress(done, total)
    return assembly.finish()


def random_tensors(architecture: Architecture, seed: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The same, tensor after tensor as a checkpoint has them."""
    for name, shape, pool in _draws(architecture, seed):
        yield name, _repeat(pool, torch.empty(math.prod(shape), dtype=dtype)).view(shape)


def _slab(shape: Shape) -> tuple[int, int]:
    """Rows at a time, and their width."""
    inputs = math.prod(shape[1:])
    return min(shape[0], max(1, SLAB // inputs // _WHOLE) * _WHOLE), inputs


def _repeat(pool: Tensor, out: Tensor) -> Tensor:
    """Fills `out` with the values of the pool, over and over."""
    for first in range(0, len(out), len(pool)):
        part = out[first : first + len(pool)]
        part.copy_(pool[: len(part)])
    return out


def _draws(architecture: Architecture, seed: int) -> Iterator[tuple[str, Shape, Tensor]]:
    """Name, shape, and the values that the tensor repeats: they last until the next are asked for."""
    generator = torch.Generator().manual_seed(seed)
    room = torch.empty(_POOL, dtype=torch.float64)
    for name, shape in shapes(architecture).items():
        mean, deviation = _law(name, shape, architecture)
        yield name, shape, room[: math.prod(shape)].normal_(mean, deviation, generator=generator)


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
