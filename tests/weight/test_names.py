"""Where tensors lie in a checkpoint, as data."""

from __future__ import annotations

from headrace.weight.names import STANDARD, Names, shapes
from tests.weight.folders import CONFIG, architecture_of


def test_fused_rows_come_in_the_order_that_the_family_says() -> None:
    fused = {"model.layers.{i}.both": ("blocks.{i}.mlp.up", "blocks.{i}.mlp.gate")}
    plan = Names(modules=STANDARD, fused=fused).plan(architecture_of(CONFIG))
    assert plan["model.layers.1.both.weight"] == [
        ("blocks.1.mlp.up.weight", (24, 16)),
        ("blocks.1.mlp.gate.weight", (24, 16)),
    ]
    assert "model.layers.1.mlp.up_proj.weight" not in plan


def test_every_tensor_is_planned_once() -> None:
    architecture = architecture_of({**CONFIG, "attention_bias": True})
    placed = [name for parts in Names(modules=STANDARD).plan(architecture).values() for name, _ in parts]
    assert sorted(placed) == sorted(shapes(architecture))


def test_prefixes_and_harmless_patterns() -> None:
    names = Names(modules=STANDARD, ignored=("vision.*",), prefixes=(("language.", ""), ("text.", "model.")))
    assert names.standard("language.model.norm.weight") == "model.norm.weight"
    assert names.standard("text.norm.weight") == "model.norm.weight"
    assert names.standard("other.weight") == "other.weight"
    assert names.is_harmless("vision.a.weight") and names.is_harmless("model.layers.3.rotary_emb.inv_freq")
    assert not names.is_harmless("model.vision.weight")
