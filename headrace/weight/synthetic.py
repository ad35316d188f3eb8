"""Random weights of a given architecture: for tests, and for measuring the speed of a shape without a download."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.weight import memory
from headrace.weight.assemble import Assembly, Weights, make
from headrace.weight.formats import Format
from headrace.weight.load import check_dtype
from headrace.weight.names import Shape, shapes

_POOL = 1_000_003  # draws per tensor; prime, so that a longer tensor repeats them at a different column in every row
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
    for name, tensor in random_tensors(architecture, seed, dtype):
        assembly.put(name, 0, tensor)
    return assembly.finish()


def random_tensors(architecture: Architecture, seed: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The same, tensor after tensor as a checkpoint has them."""
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes(architecture).items():
        yield name, _draw(name, shape, architecture, generator, dtype)


def _draw(
    name: str, shape: Shape, architecture: Architecture, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    mean, deviation = 0.0, shape[-1] ** -0.5
    if name == "head.weight" or (name == "embed.weight" and architecture.tied_head):
        deviation *= _SPREAD
    elif name == "embed.weight":
        deviation = 1.0 / architecture.embedding_scale
    elif name.endswith("norm.weight"):
        mean, deviation = 1.0 - architecture.norm_offset, 0.1
    elif name.endswith(".bias"):
        deviation = 0.1
    out = torch.empty(shape, dtype=dtype)
    flat = out.view(-1)
    pool = torch.randn(min(flat.numel(), _POOL), generator=generator, dtype=torch.float64) * deviation + mean
    for start in range(0, flat.numel(), _POOL):
        piece = flat[start : start + _POOL]
        piece.copy_(pool[: piece.numel()])
    return out
