"""Tiny random models in float64, where equal logits mean equal tokens and ties do not happen by chance; and some in
float32 with packed weights, whose kernels promise the same bits whatever runs beside them."""

from __future__ import annotations

import functools

import torch

from headrace.architecture import Architecture, Attention, Block, Mlp
from headrace.forward.decoder import Decoder
from headrace.forward.load import random
from headrace.forward.skippers import SLOT as SKIPPERS
from headrace.layer.positions import SLOT
from headrace.weight.assemble import make

VOCAB = 61
CONTEXT = 96
WINDOWS: dict[str, tuple[int | None, ...]] = {
    "full": (None, None),
    "mixed": (7, None),
    "two_windows": (5, 12),
}
"""Attention window of each layer, per model."""
NATIVE: dict[str, tuple[tuple[int | None, ...], str, str]] = {
    "int4": ((None, None), "int4:group=32", "int8"),
    "int8_windows": ((7, None), "int8", "bf16"),
    "bf16": ((None, 9), "bf16", "bf16"),
    "int3_windows": ((20, 33), "int3:group=32,asymmetric=true,head=int4", "int8"),
    "int4_dual": ((None, 11), "int4_dual:group=32,head=int4_dual", "bf16"),
    "int8_landmarks": ((None, 20), "int8", "int8"),
    "tmac": ((None, 13), "tmac:bits=3,group=32,head=tmac", "int8"),
}
"""Windows, weights and KV codec of the models that run on native kernels."""
BLOCKS: dict[str, tuple[tuple[int | None, ...], str]] = {
    "kivi": ((None, None), "kivi:group=16,residual=16"),
    "kivi_windows": ((7, None), "kivi:bits=2,group=16,residual=16"),
    "kivi_wide": ((40, 21), "kivi:group=16,residual=32"),
    "sinks": ((None, None), "plain"),
    "sinks_windows": ((6, None), "plain"),
    "kivi_sinks": ((None, 30), "kivi:group=16,residual=16"),
    "landmarks": ((None, 9), "plain"),
    "squeezed": ((None, None), "int8"),
}
"""Windows and KV codec of models in float64 with codecs that store whole blocks, or with keepers or selectors."""
KEEPERS = {
    "sinks": "streaming:sink=3,window=8",
    "sinks_windows": "streaming:sink=5,window=12",
    "kivi_sinks": "streaming:sink=3,window=20",
}
SELECTORS = {
    "landmarks": "landmarks:share=0.3,least=4,sink=2,recent=4,dense=0",
    "squeezed": "squeezed:share=0.4,least=4,sink=0,recent=3",
    "int8_landmarks": "landmarks:share=0.3,least=16,sink=4,recent=4,dense=0",
}


def stack(name: str) -> dict[str, str]:
    """What this model's engines have in common."""
    chosen = {"kv-selector": SELECTORS[name]} if name in SELECTORS else {}
    if name in BLOCKS:
        return {"kv-codec": BLOCKS[name][1], "kv-keeper": KEEPERS.get(name, "everything"), **chosen}
    return {"weights": NATIVE[name][1], "kv-codec": NATIVE[name][2], **chosen} if name in NATIVE else {}


def page_tokens(name: str) -> tuple[int, ...]:
    """Page sizes that its kernels take."""
    if name in SELECTORS:  # a page is what is chosen
        return (16,) if name in NATIVE else (4,)
    if name in BLOCKS:
        return (1, 2, 4, 8, 16)
    return (16,) if name in NATIVE else (1, 1, 2, 3, 4, 8)


@functools.cache
def decoder(name: str, skipper: str = "") -> Decoder:
    """The model called `name`, made for a skipper; end token 0."""
    native = name in NATIVE
    windows = NATIVE[name][0] if native else (BLOCKS.get(name) or (WINDOWS.get(name),))[0]
    assert windows is not None, f"no model called {name}"
    blocks = tuple(
        Block(
            attention=Attention(
                heads=4,
                kv_heads=2,
                head_size=16 if native else 4,
                scale=0.25 if native else 0.5,
                positions=SLOT.make("rope"),
                theta=10_000.0,
                window=window,
            ),
            mlp=Mlp(width=24),
        )
        for window in windows
    )
    architecture = Architecture(
        family="llama", vocab=VOCAB, width=16, context=CONTEXT, blocks=blocks, norm_eps=1e-5, eos=(0,)
    )
    if skipper:
        architecture = SKIPPERS.make(skipper).adapt(architecture)
    seed = sum(map(ord, name))
    if native:
        return random(architecture, seed, torch.float32, form=make(NATIVE[name][1]))
    return random(architecture, seed, torch.float64)
