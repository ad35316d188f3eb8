"""What every skipper promises: tokens do not depend on the schedule, and nothing left out changes nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.forward.neurons import STEPS, write_profile
from headrace.forward.skippers import SLOT
from headrace.params import SamplingParams
from headrace.types import Request
from tests.whole import models
from tests.whole.drive import Ask, Fork, Outputs, nothing_left, scripted

SPECS = {
    "cats": ("cats:profile={profile}", "cats:profile={profile},sparsity=0"),
    "skipdecode": ("skipdecode:most=1,least=0.5,tokens=6", "skipdecode:least=1"),
    "lazyllm": (
        "lazyllm:keep=0.4,steps=1,first=0.5,returns=2,shortest=9",
        "lazyllm:keep=1,steps=1,first=0.5,shortest=1",
    ),
}
"""Of each member one that leaves something out, and one that does not."""
WITHOUT_CACHE = {"lazyllm"}
"""Members that refuse the prefix cache."""
MODELS = [
    (name, model)
    for name in SPECS
    for model in ("full", "mixed", "int4")
    if (name, model) not in {("lazyllm", "mixed"), ("cats", "int4"), ("skipdecode", "int4")}
]
"""The models that each member runs with; int4 has kernels of its own."""
PAGES = {"full": (4, 26), "mixed": (4, 34), "int4": (16, 7)}
"""Tokens of a page, and how many pages are few."""


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("profiles") / "neurons.json"
    steps = [(i + 5) / STEPS for i in range(STEPS + 1)]
    write_profile(path, models.decoder("full").architecture, [steps, steps])
    return str(path)


def run(spec: str, model: str = "full", *, plain: bool = False, **options: object) -> tuple[Outputs, Engine]:
    """Prompts that share their beginning, samples, forks, and drafts."""
    stack = {
        "policy": "sarathi:tokens=5,idle=9",
        "drafter": "copyspec:gamma=2",
        "draft-budget": "fixed:tokens=2",
    }
    if not plain:
        stack["skipper"] = spec
    if spec.partition(":")[0] in WITHOUT_CACHE:
        options["prefix_cache"] = False
    stack |= models.stack(model)
    made = Engine(
        EngineConfig(stack=stack, page_tokens=PAGES[model][0], threads=1, **options),
        decoder=models.decoder(model, "" if plain else spec),
        poison=True,
    )
    asks = []
    for i, length in enumerate((33, 7, 50, 41)):
        prompt = tuple((5 * k) % models.VOCAB for k in range(length))
        params = SamplingParams(temperature=0.7, seed=i, n=1 + i % 2, max_tokens=20, ignore_eos=True)
        asks.append(Ask(Request(id=str(i), prompt=prompt, params=params, arrival=float(i)), step=2 * i))
    found = scripted(made, asks, [Fork("0", "f", 12, 5)])
    nothing_left(made)
    return found.outputs, made


def test_every_member_is_here() -> None:
    assert set(SPECS) == set(SLOT.index)


@pytest.mark.parametrize(("name", "model"), MODELS)
def test_what_leaves_nothing_out_changes_nothing(name: str, model: str, profile: str) -> None:
    spec = SPECS[name][1].format(profile=profile)
    found, plain = run(spec, model)[0], run(spec, model, plain=True)[0]
    assert {key: found[key] for key in found if key[0] != "f"} == {k: plain[k] for k in plain if k[0] != "f"}


@pytest.mark.parametrize("name", SPECS)
def test_what_leaves_something_out_changes_tokens(name: str, profile: str) -> None:
    spec = SPECS[name][0].format(profile=profile)
    assert run(spec)[0] != run(spec, plain=True)[0]


@pytest.mark.parametrize(("name", "model"), MODELS)
def test_tokens_do_not_depend_on_the_schedule(name: str, model: str, profile: str) -> None:
    """Chunks, prefix hits, pauses by recomputing and by swapping."""
    spec = SPECS[name][0].format(profile=profile)
    alone, made = run(spec, model, prefix_cache=False)
    if name not in WITHOUT_CACHE:
        cached, with_cache = run(spec, model)
        assert cached == alone and with_cache.counters.cached_tokens > 0
    page = made.kv.tables.sizes.page_bytes
    for pressure in ({}, {"preempt": "swap", "swap_bytes": 1 << 20}):
        tight, pressed = run(spec, model, kv_bytes=PAGES[model][1] * page, context=72, **pressure)
        assert tight == alone and pressed.counters.recomputes + pressed.counters.swaps > 0


@pytest.mark.parametrize("name", SPECS)
def test_it_is_written_into_a_model_once(name: str, profile: str) -> None:
    member, plain = SLOT.make(SPECS[name][0].format(profile=profile)), models.decoder("full").architecture
    once = member.adapt(plain)
    assert member.adapt(once) == once != plain
    assert dataclasses.replace(once, blocks=plain.blocks) == plain


@pytest.mark.parametrize("name", SPECS)
def test_a_decoder_without_it_is_refused(name: str, profile: str) -> None:
    stack = {"skipper": SPECS[name][0].format(profile=profile)}
    config = EngineConfig(stack=stack, threads=1, prefix_cache=name not in WITHOUT_CACHE)
    with pytest.raises(ConfigError, match="made without") as caught:
        Engine(config, decoder=models.decoder("full"))
    assert "adapt(" in str(caught.value)


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    member = SLOT.make(f"cats:profile={tmp_path / 'none.json'}")
    with pytest.raises(ConfigError, match="headrace profile --of neurons"):
        member.adapt(models.decoder("full").architecture)
