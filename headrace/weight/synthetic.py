"""Random weights of a given architecture: for tests, and for measuring the speed of a shape without a download."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.weight import memory
from headrace.weight.load import check_dtype, weight_bytes
from headrace.weight.names import Shape, shapes

_POOL = 1_000_003  # draws per tensor; prime, so that a longer tensor repeats them at a different column in every row
_SPREAD = 3.0  # standard deviation of the logits


def random_weights(
    architecture: Architecture, seed: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Weights that keep activations near 1 and give logits a standard deviation of about 3.

    The same seed gives the same values in every dtype, up to rounding. Raises ModelError if they do not fit in memory.
    """
    check_dtype(dtype)
    memory.require(weight_bytes(architecture, dtype), device, f"a random {architecture.family} as {dtype}")
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes(architecture).items():
        weights[name] = _draw(name, shape, architecture, generator, dtype).to(device)
    return weights


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
