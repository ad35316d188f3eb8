"""Tiny random models in float64, where equal logits mean equal tokens and ties do not happen by chance."""

from __future__ import annotations

import functools

import torch

from headrace.architecture import Architecture, Attention, Block, Mlp
from headrace.forward.decoder import Decoder
from headrace.forward.load import random
from headrace.layer.positions import SLOT

VOCAB = 61
CONTEXT = 96
WINDOWS: dict[str, tuple[int | None, ...]] = {
    "full": (None, None),
    "mixed": (7, None),
    "two_windows": (5, 12),
}
"""Attention window of each layer, per model."""


@functools.cache
def decoder(name: str) -> Decoder:
    """The model called `name`; end token 0."""
    blocks = tuple(
        Block(
            attention=Attention(
                heads=4,
                kv_heads=2,
                head_size=4,
                scale=0.5,
                positions=SLOT.make("rope"),
                theta=10_000.0,
                window=window,
            ),
            mlp=Mlp(width=24),
        )
        for window in WINDOWS[name]
    )
    architecture = Architecture(
        family="llama", vocab=VOCAB, width=16, context=CONTEXT, blocks=blocks, norm_eps=1e-5, eos=(0,)
    )
    return random(architecture, seed=sum(map(ord, name)), dtype=torch.float64)
