"""Profiles of neurons: how large the gate's activations are, layer by layer, on some text.

A neuron of a gated MLP adds act(gate) * up times its column of down. Where act(gate) is small it adds little, whatever
up is: the quantiles of |act(gate)| say below which size a share of them lies.

Paper   https://arxiv.org/abs/2404.08763 (CATS)
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch
from torch import Tensor

from headrace import artefact
from headrace.architecture import Architecture
from headrace.errors import ConfigError
from headrace.forward.decoder import Decoder
from headrace.kernels.before import Before, apply
from headrace.layer.mlp import GatedMlp
from headrace.weight.adapter import Mix

MAX_BYTES = 16 << 20
STEPS = 100
"""Quantiles are kept at 0, 1/STEPS, ..., 1."""
ADVICE = "make one: headrace profile --of neurons --model DIR --out FILE"


class _File(msgspec.Struct, forbid_unknown_fields=True):
    family: str
    widths: list[int]
    """Neurons per layer."""
    quantiles: list[list[float]]
    """Per layer, STEPS + 1 of them, rising."""


class _Watched:
    """An MLP whose gate is looked at."""

    def __init__(self, mlp: GatedMlp, found: list[list[float]]) -> None:
        self._mlp, self._found = mlp, found

    def __call__(
        self, x_TD: Tensor, before: Before = None, add_TD: Tensor | None = None, mix: Mix | None = None
    ) -> Tensor:
        both_TF = self._mlp.gate_up(x_TD, before).clone()
        both_TF[:, self._mlp.width :] = 1
        self._found.append(quantiles(apply(self._mlp.activation, both_TF)))
        return self._mlp(x_TD, before, add_TD, mix)


def watch(decoder: Decoder) -> list[list[float]]:
    """A list that one forward pass of this decoder fills, layer by layer. Raises ConfigError for a mixture of experts.

    From now on the decoder looks at its gates, at some cost: it is of no other use.
    """
    found: list[list[float]] = []
    for block in decoder.blocks:
        if not isinstance(block.mlp, GatedMlp):
            raise ConfigError(
                "neurons are profiled of models whose layers have one MLP, stored as a whole: not of mixtures of "
                "experts, nor with --skipper cats"
            )
        block.mlp = _Watched(block.mlp, found)  # type: ignore[assignment]
    return found


def quantiles(act_TF: Tensor) -> list[float]:
    """Of the sizes, at 0, 1/STEPS, ..., 1."""
    sizes = act_TF.abs().float().flatten().sort().values
    at = torch.linspace(0, len(sizes) - 1, STEPS + 1, dtype=torch.float64).round().long()
    found: list[float] = sizes[at].tolist()
    return found


def write_profile(path: Path, architecture: Architecture, found: list[list[float]]) -> None:
    """As thresholds() reads it."""
    widths = [block.mlp.width for block in architecture.blocks]
    artefact.write(path, _File(architecture.family, widths, found))


def thresholds(path: str, architecture: Architecture, share: float) -> list[float]:
    """Per layer: the size below which this share of the activations lay, from 0 (none) to less than 1. Raises
    ConfigError if the file is not of a model of this shape."""
    found = artefact.read(path, _File, "profile of neurons", ADVICE, most=MAX_BYTES)
    widths = [block.mlp.width for block in architecture.blocks]
    whole = all(len(layer) == STEPS + 1 and layer == sorted(layer) for layer in found.quantiles)
    if found.family != architecture.family or found.widths != widths or len(found.quantiles) != len(widths):
        raise ConfigError(f"{path} is the profile of another model; {ADVICE}")
    if not whole or min(layer[0] for layer in found.quantiles) < 0:
        raise ConfigError(f"{path} is no profile of neurons: its quantiles do not rise from 0; {ADVICE}")
    below, rest = divmod(share * STEPS, 1)
    at = int(below)
    return [layer[at] + rest * (layer[at + 1] - layer[at]) if share else 0.0 for layer in found.quantiles]
