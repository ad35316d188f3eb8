"""What every tier promises: the tokens of weights in memory, bit for bit, whatever runs beside."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest
import torch

from headrace import kernels
from headrace.architecture import Architecture, Mlp
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.forward.decoder import Decoder
from headrace.forward.load import random
from headrace.forward.neurons import STEPS, write_profile
from headrace.forward.skippers import SLOT as SKIPPERS
from headrace.types import Request, SamplingParams
from headrace.weight.assemble import make, make_tier
from headrace.weight.tiers import SLOT
from tests.weight import lora_folders
from tests.whole import models
from tests.whole.drive import Ask, Fork, Outputs, nothing_left, scripted

SPECS = {
    "memory": ("memory",),
    "window": ("window:bytes={least}", "window:bytes={half}", "window:bytes={most}"),
}
"""Of each member, with the sizes that a model suggests."""
FORMS = (
    "plain",
    "bf16",
    "int4:group=32",
    "int8",
    "dfloat11",
    "spqr:base=int3:group=32,outliers=0.02",
    "int4_dual:group=32",
    "tmac:bits=2,group=32",
)
each_spec = pytest.mark.parametrize("spec", [spec for specs in SPECS.values() for spec in specs])


@functools.cache
def architecture(kind: str = "dense") -> Architecture:
    """Five blocks, so that a window has something to slide over."""
    base = models.decoder("int4").architecture
    mlp = Mlp(width=24, experts=4, active=2, renormalise=True) if kind == "moe" else base.blocks[0].mlp
    blocks = tuple(
        dataclasses.replace(block, mlp=mlp) for block in (*base.blocks, *base.blocks, base.blocks[0])
    )
    return dataclasses.replace(base, blocks=blocks, family="mixtral" if kind == "moe" else base.family)


def sizes(made: Architecture, form: str) -> dict[str, int]:
    """The least that `window` takes for this model, about half of it, and almost everything."""
    with pytest.raises(ConfigError, match="less than one block") as caught:
        random(made, form=make(form), tier=make_tier("window:bytes=1"))
    least = int(str(caught.value).split("give it ")[1].split()[0])
    total = least * len(made.blocks)
    return {"least": least, "half": total // 2 + 4096, "most": total - 1}


def decoder(made: Architecture, form: str, spec: str) -> Decoder:
    return random(made, 0, torch.float32, form=make(form), tier=make_tier(spec))


def run(made: Architecture, form: str, spec: str, **options: object) -> tuple[Outputs, Engine]:
    """Prompts that share their beginning, in chunks, with samples, forks, drafts and a cancel."""
    stack = {
        "policy": "sarathi:tokens=5,idle=9",
        "drafter": "copyspec:gamma=2",
        "draft-budget": "fixed:tokens=2",
        "weights": form,
        "weight-tier": spec,
        **options.pop("stack", {}),
    }
    config = EngineConfig(stack=stack, **{"page_tokens": 16, "threads": 1, **options})
    engine = Engine(config, decoder=decoder(made, form, spec), poison=True)
    asks = []
    for i, length in enumerate((33, 7, 50, 41)):
        prompt = tuple((5 * k) % models.VOCAB for k in range(length))
        params = SamplingParams(temperature=0.7, seed=i, n=1 + i % 2, max_tokens=20, ignore_eos=True)
        adapter = sorted(config.adapters)[i % len(config.adapters)] if config.adapters and i % 2 else ""
        asks.append(
            Ask(
                Request(id=str(i), prompt=prompt, params=params, arrival=float(i), adapter=adapter),
                step=2 * i,
                cancel=9 if i == 2 else None,
            )
        )
    found = scripted(engine, asks, [Fork("0", "f", 12, 5)])
    nothing_left(engine)
    return {key: tokens for key, tokens in found.outputs.items() if key[0] != "2"}, engine


def test_every_member_is_here() -> None:
    assert set(SPECS) == set(SLOT.index)


@pytest.mark.skipif(kernels.isa() == kernels.REFERENCE, reason="PyTorch rounds a row by what is beside it")
@each_spec
@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_those_of_weights_in_memory(spec: str, form: str) -> None:
    """Chunks, forks and drafts, with every kind of packed bytes."""
    made = architecture()
    spec = spec.format(**sizes(made, form))
    assert run(made, form, spec)[0] == run(made, form, "memory")[0]


@each_spec
def test_a_mixture_of_experts(spec: str) -> None:
    made = architecture("moe")
    spec = spec.format(**sizes(made, "bf16"))
    assert run(made, "bf16", spec)[0] == run(made, "bf16", "memory")[0]


@each_spec
def test_under_pressure(spec: str) -> None:
    """Pauses by recomputing and by swapping, prefix hits, and no recording on top."""
    made = architecture()
    spec = spec.format(**sizes(made, "int8"))
    plain = run(made, "int8", "memory", prefix_cache=False)[0]
    cached, engine = run(made, "int8", spec)
    assert cached == plain and engine.counters.cached_tokens > 0
    page = engine.kv.tables.sizes.page_bytes
    for pressure in ({}, {"preempt": "swap", "swap_bytes": 1 << 20}):
        tight, pressed = run(made, "int8", spec, kv_bytes=9 * page, context=72, **pressure)
        assert tight == plain and pressed.counters.recomputes + pressed.counters.swaps > 0


@each_spec
def test_with_adapters(spec: str, tmp_path: Path) -> None:
    made = architecture()
    spec = spec.format(**sizes(made, "bf16"))
    named = {name: str(lora_folders.write(tmp_path / name, made, 3, i)) for i, name in enumerate("ab")}
    plain = run(made, "bf16", "memory")[0]
    found = run(made, "bf16", spec, adapters=named)[0]
    assert found == run(made, "bf16", "memory", adapters=named)[0] != plain


@each_spec
@pytest.mark.parametrize(
    "skipper", ["skipdecode:most=1,least=0.4,tokens=6", "cats:profile={profile},sparsity=0.4"]
)
def test_with_something_left_out(spec: str, skipper: str, tmp_path: Path) -> None:
    """Blocks that some steps do not need, and MLPs that are kept neuron by neuron."""
    profile = tmp_path / "neurons.json"
    write_profile(
        profile, architecture(), [[i / STEPS for i in range(STEPS + 1)]] * len(architecture().blocks)
    )
    skipper = skipper.format(profile=profile)
    made = SKIPPERS.make(skipper).adapt(architecture())
    spec = spec.format(**sizes(made, "bf16"))
    found, plain = (run(made, "bf16", tier, stack={"skipper": skipper})[0] for tier in (spec, "memory"))
    assert found == plain != run(architecture(), "bf16", "memory")[0]


@each_spec
def test_a_decoder_of_another_tier_is_refused(spec: str) -> None:
    made = architecture()
    spec = spec.format(**sizes(made, "bf16"))
    other = "window:bytes=9K" if spec == "memory" else "memory"
    config = EngineConfig(stack={"weights": "bf16", "weight-tier": other}, threads=1)
    with pytest.raises(ConfigError, match="name the same --weight-tier"):
        Engine(config, decoder=decoder(made, "bf16", spec))
