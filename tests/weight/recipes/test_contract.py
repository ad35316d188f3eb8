"""Every recipe on every family: nothing but rounding changes what the model computes, and a run is repeatable."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest
import torch

from headrace.errors import ConfigError
from headrace.forward.calibration import BlockPass
from headrace.models import SLOT as FAMILIES
from headrace.weight.assemble import make
from headrace.weight.codes import Coded
from headrace.weight.recipes import SLOT
from tests.forward import dense
from tests.weight.recipes import models

SCALED = "awq:grid=5,clip=0"
SPECS = (
    "rtn",
    "awq:grid=4,clip=3",
    SCALED,
    "gptq",
    "gptq:sort=true",
    "qoq",
    "qoq:rotate=false",
    "qoq:alpha=0,beta=0,keys=0",
)
TEXTS = [Random(s).choices(range(48), k=24) for s in range(3)]

each_spec = pytest.mark.parametrize("spec", SPECS)


def test_every_recipe_and_every_family_is_tried() -> None:
    assert {spec.partition(":")[0] for spec in SPECS} == set(SLOT.index)
    assert {kind for kind, _ in models.FAMILIES.values()} == set(FAMILIES.index)


@each_spec
@pytest.mark.parametrize("name", models.FAMILIES)
def test_without_rounding_the_model_stays_as_it_is(spec: str, name: str) -> None:
    model, recipe = models.architecture(name), SLOT.make(spec)
    found = models.tensors(model)
    if spec.startswith("qoq") and recipe.rotate and any(block.post_norms for block in model.blocks):
        with pytest.raises(ConfigError, match="do not commute with a rotation: use qoq:rotate=false"):
            recipe.plan(model)
        return
    becomes = recipe.plan(model)
    form = models.Unrounded(pretend=spec == SCALED)  # without errors there is nothing to search for
    made = models.treat(recipe, model, dict(found), TEXTS, form)
    changed = [n for n, t in found.items() if n.endswith("out.weight") and not torch.allclose(made[n], t)]
    assert bool(changed) == (spec == SCALED or spec.startswith("qoq")), "not what this test is for"
    assert recipe.folds or not changed
    want = dense.logits(models.decoder(model, found), TEXTS[0])
    got = dense.logits(models.decoder(becomes, made), TEXTS[0])
    assert (got - want).abs().max() < 1e-9 * want.abs().max()


@pytest.mark.parametrize("name", models.FAMILIES)
def test_a_block_alone_computes_what_the_decoder_does(name: str) -> None:
    model = models.architecture(name)
    found = models.tensors(model)
    whole = models.decoder(model, found)
    x_TD = found["embed.weight"][torch.tensor(TEXTS[0])] * model.embedding_scale
    for layer in range(len(model.blocks)):
        at = f"blocks.{layer}."
        x_TD = BlockPass(model, layer, {n.removeprefix(at): t for n, t in found.items() if n.startswith(at)})(
            x_TD
        )
    got = whole.logits(whole.norm(x_TD))
    assert torch.allclose(got, dense.logits(whole, TEXTS[0]), rtol=1e-12, atol=1e-12)


@each_spec
@pytest.mark.parametrize(
    "weights",
    ["int4:group=32", "int3:group=32,asymmetric=true", "int4_dual:group=32", "tmac:bits=3,group=32", "spqr"],
)
def test_codes_are_the_same_each_time_and_come_close(spec: str, weights: str) -> None:
    model, form = models.architecture("qwen3_moe"), make(weights)
    assert isinstance(form, Coded)
    found = {name: t.float() for name, t in models.tensors(model).items()}
    one, other = (models.treat(SLOT.make(spec), model, dict(found), TEXTS, form) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    becomes = SLOT.make(spec).plan(model)
    wide = {name: t.double() for name, t in one.items()}
    got = dense.logits(models.decoder(becomes, wide), TEXTS[0])
    want = dense.logits(models.decoder(model, {n: t.double() for n, t in found.items()}), TEXTS[0])
    assert (got - want).square().mean() < 0.6 * want.square().mean()


@each_spec
def test_an_expert_that_no_row_comes_to_is_rounded_to_something(spec: str) -> None:
    model = models.architecture("mixtral")
    form = make("int4:group=32")
    found = {name: t.float() for name, t in models.tensors(model).items()}
    made = models.treat(
        SLOT.make(spec), model, dict(found), [TEXTS[0][:1]], form
    )  # one row: two experts of four
    assert all(t.isfinite().all() for t in made.values())


def test_options_are_checked() -> None:
    for spec in ("gptq:damp=0", "awq:grid=-1", "awq:clip=20", "qoq:alpha=2", "qoq:damp=2", "qoq:seed=-1"):
        with pytest.raises(ConfigError, match="must be"):
            SLOT.make(spec)
    for name in SLOT.index:
        assert dataclasses.is_dataclass(SLOT.load(name))
