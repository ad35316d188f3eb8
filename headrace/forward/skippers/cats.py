"""Leaves out the neurons that a token's gate hardly opens.

Paper   https://arxiv.org/abs/2404.08763 (CATS)
Idea    In a gated MLP, |act(gate)| says beforehand how much a neuron can matter. Below a threshold, the neuron's row of
        up and its column of down are not even read: with half of the neurons gone, a third of the MLP's bytes. The
        threshold of a layer is a quantile of what its gate gives on some text.
Trades  Answers drift, more the more leave. Memory is what it was; adapters of up and down are refused.
Differs No fine-tuning. The threshold is one number per layer, as in the paper's code; the share that leaves is that of
        the text it was made from, and differs from token to token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from headrace.architecture import Architecture
from headrace.forward.neurons import thresholds
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Cats:
    """A threshold per layer."""

    card: ClassVar[Card] = Card(
        slot="skipper",
        exact="lossy",
        paper="https://arxiv.org/abs/2404.08763",
        artifact="a profile of the model's neurons: headrace profile --of neurons --model DIR --out FILE",
        recordable=True,
        needs=(
            ("cpu", "its kernel is for processors; on a GPU nothing would be saved"),
            (
                "float_weights",
                "single neurons are read of weights that are kept as floats: use plain or bf16",
            ),
        ),
        breaks=(
            ("moe", "experts are chosen by a router already, and their neurons are not profiled"),
            ("mlp_bias", "its kernel adds no bias"),
        ),
    )
    profile: str
    """File that `headrace profile --of neurons` wrote."""
    sparsity: float = 0.5
    """Share of the neurons that leave, on the text of the profile."""

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity={self.sparsity} must be from 0 to less than 1")

    def adapt(self, architecture: Architecture) -> Architecture:
        found = thresholds(self.profile, architecture, self.sparsity)
        blocks = tuple(
            replace(block, mlp=replace(block.mlp, threshold=threshold))
            for block, threshold in zip(architecture.blocks, found, strict=True)
        )
        return replace(architecture, blocks=blocks)
