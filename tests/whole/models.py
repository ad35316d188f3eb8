"""Tiny random models in float64, where equal logits mean equal tokens and ties do not happen by chance; and some in
float32 with packed weights, whose kernels promise the same bits whatever runs beside them."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch

from headrace import artefact
from headrace.architecture import Architecture, Attention, Block, Mlp
from headrace.forward.decoder import Decoder
from headrace.forward.load import random
from headrace.forward.skippers import SLOT as SKIPPERS
from headrace.kv import codebooks
from headrace.kv.heads import write_profile
from headrace.layer.positions import SLOT
from headrace.weight.assemble import make, make_tier

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
    "dfloat11": ((7, None), "dfloat11", "bf16"),
    "spqr": ((None, None), "spqr:base=int3:group=32,outliers=0.02,head=int4", "int8"),
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
    "d2o": "d2o:heavy=6,window=8,sink=4,block=4",
    "d2o_kivi": "d2o:heavy=9,window=32,sink=0,block=16",
    "d2o_kvquant": "d2o:heavy=20,window=16,sink=8,block=8",
}
SELECTORS = {
    "landmarks": "landmarks:share=0.3,least=4,sink=2,recent=4,dense=0",
    "squeezed": "squeezed:share=0.4,least=4,sink=0,recent=3",
    "int8_landmarks": "landmarks:share=0.3,least=16,sink=4,recent=4,dense=0",
}
ARTIFACTS: dict[str, tuple[tuple[int | None, ...], str, str]] = {
    "razor": ((None, None), "plain", "razor:share=0.5,sink=8,window=24,block=8"),
    "razor_small": ((9, None), "plain", "razor:share=0,sink=0,window=4,block=4"),
    "razor_kivi": ((None, None), "kivi:group=16,residual=16", "razor:share=0.25,sink=16,window=32,block=16"),
    "kvquant": ((None, 9), "kvquant:bits=3", "windows"),
    "razor_kvquant": ((None, None), "kvquant", "razor:share=0.5,sink=0,window=16,block=8"),
    "d2o": ((None, None), "plain", "windows"),
    "d2o_kivi": ((9, None), "kivi:group=16,residual=16", "windows"),
    "d2o_kvquant": ((None, None), "kvquant", "single"),
}
"""Windows, KV codec and layout of models in float64 with members that need a file made for the model, or summaries."""
DEEP: dict[str, tuple[tuple[int | None, ...], dict[str, str]]] = {
    "deep": ((None,) * 5, {}),
    "deep_windows": ((None, 9, 9, None, 9, 9), {}),
    "deep_landmarks": (
        (None, None, 9, None, 9, None),
        {"kv-selector": "landmarks:share=0.3,least=4,sink=2,recent=4,dense=1"},
    ),
    "deep_squeezed": (
        (None,) * 4,
        {"kv-codec": "int8", "kv-selector": "squeezed:share=0.4,least=4,sink=0,recent=3"},
    ),
    "deep_sinks": ((None,) * 4, {"kv-keeper": "streaming:sink=5,window=12"}),
}
"""Windows and stack of models in float64 with more layers than may be in memory at once."""


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="headrace-test-"))


def profile() -> Path:
    """Of the heads of models with two layers of two kv heads."""
    path = _folder() / "heads.json"
    if not path.exists():
        write_profile(path, decoder("full").architecture, [[0.1, 0.9], [0.8, 0.2]])
    return path


def books(shapes: tuple[tuple[int, int], ...] = ((2, 4), (2, 4))) -> Path:
    """Codebooks for layers of so many kv heads of such a size, with a range for numbers around 1."""
    path = _folder() / f"codes-{'-'.join(f'{heads}x{size}' for heads, size in shapes)}.json"
    if not path.exists():
        even = {str(b): [(2 * i + 1) / (1 << b) - 1 for i in range(1 << b)] for b in codebooks.BITS}
        bent = {bits: [x * abs(x) for x in book] for bits, book in even.items()}
        layers = [
            codebooks.LayerCodes([[-3.0] * size] * heads, [[2.5] * size] * heads, even, bent)
            for heads, size in shapes
        ]
        artefact.write(path, codebooks.Codebooks("llama", layers))
    return path


def with_file(spec: str) -> str:
    """A spec, and the file that it needs."""
    name, _, _ = spec.partition(":")
    needed = {"razor": ("profile", profile), "kvquant": ("codebooks", books)}
    if name not in needed:
        return spec
    option, make_file = needed[name]
    return f"{spec}{',' if ':' in spec else ':'}{option}={make_file()}"


def stack(name: str) -> dict[str, str]:
    """What this model's engines have in common."""
    if name in ARTIFACTS:
        _, codec, layout = ARTIFACTS[name]
        keeper = KEEPERS.get(name, "everything")
        return {"kv-codec": with_file(codec), "kv-layout": with_file(layout), "kv-keeper": keeper}
    if name in DEEP:
        return DEEP[name][1]
    chosen = {"kv-selector": SELECTORS[name]} if name in SELECTORS else {}
    if name in BLOCKS:
        return {"kv-codec": BLOCKS[name][1], "kv-keeper": KEEPERS.get(name, "everything"), **chosen}
    return {"weights": NATIVE[name][1], "kv-codec": NATIVE[name][2], **chosen} if name in NATIVE else {}


def page_tokens(name: str) -> tuple[int, ...]:
    """Page sizes that its kernels take."""
    if name in ARTIFACTS:
        return (1, 2, 4)
    if name in SELECTORS or (name in DEEP and "kv-selector" in DEEP[name][1]):  # a page is what is chosen
        return (16,) if name in NATIVE else (4,)
    if name in BLOCKS:
        return (1, 2, 4, 8, 16)
    return (16,) if name in NATIVE else (1, 1, 2, 3, 4, 8)


@functools.cache
def decoder(name: str, skipper: str = "", tier: str = "memory") -> Decoder:
    """The model called `name`, made for a skipper, its weights placed by a tier; end token 0."""
    native = name in NATIVE
    windows = (
        NATIVE[name][0]
        if native
        else (DEEP.get(name) or BLOCKS.get(name) or ARTIFACTS.get(name) or (WINDOWS.get(name),))[0]
    )
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
        return random(architecture, seed, torch.float32, form=make(NATIVE[name][1]), tier=make_tier(tier))
    return random(architecture, seed, torch.float64, tier=make_tier(tier))
