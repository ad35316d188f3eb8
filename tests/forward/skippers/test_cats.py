"""cats: neurons whose gates hardly open leave; thresholds come from a profile; adapters of what leaves are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from headrace import LLM, cli
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.forward.load import random
from headrace.forward.neurons import STEPS, quantiles, thresholds, watch, write_profile
from headrace.forward.skippers import SLOT
from headrace.kv.heads import Probe
from headrace.models.llama import Llama
from headrace.params import SamplingParams
from headrace.weight.adapter import sites
from headrace.weight.assemble import make
from tests.models.dense_kv import DenseKV, batch_of
from tests.whole import models

ARCHITECTURE = models.decoder("full").architecture


def profile_of(tmp_path: Path, low: float = 0.01, high: float = 1.0) -> str:
    steps = [low + i * (high - low) / STEPS for i in range(STEPS + 1)]
    write_profile(tmp_path / "neurons.json", ARCHITECTURE, [steps, [2 * step for step in steps]])
    return str(tmp_path / "neurons.json")


def test_thresholds_are_quantiles(tmp_path: Path) -> None:
    path = profile_of(tmp_path, 0.0, 1.0)
    assert thresholds(path, ARCHITECTURE, 0.25) == [0.25, 0.5]
    assert thresholds(path, ARCHITECTURE, 0.995) == pytest.approx([0.995, 1.99])
    assert thresholds(profile_of(tmp_path, 0.1), ARCHITECTURE, 0.0) == [0.0, 0.0], "nothing leaves"
    sizes = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    found = quantiles(sizes)
    assert found == sorted(found) and len(found) == STEPS + 1
    assert found[50] == pytest.approx(float(sizes.abs().median()), abs=0.01)


def test_it_leaves_out_what_it_should(tmp_path: Path) -> None:
    """Against every weight, and a mask."""
    spec = f"cats:profile={profile_of(tmp_path)},sparsity=0.3"
    decoder, plain = models.decoder("full", spec), models.decoder("full")
    x_TD = torch.randn(7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gone = 0.0
    for sparse, dense in zip(decoder.blocks, plain.blocks, strict=True):
        gate_TF, up_TF = dense.mlp.gate_up(x_TD).chunk(2, -1)
        act_TF = F.silu(gate_TF)
        leaves_TF = act_TF.abs() < sparse.mlp.threshold
        want_TD = (act_TF * up_TF).masked_fill(leaves_TF, 0.0) @ dense.mlp.down.matrix.weight_OI.T
        torch.testing.assert_close(sparse.mlp(x_TD), want_TD, rtol=1e-12, atol=1e-12)
        gone += float(leaves_TF.double().mean()) / 2
    assert 0.3 < gone < 1


@pytest.mark.parametrize("weights", ["plain", "bf16"])
def test_with_native_kernels_nothing_left_out_is_the_dense_model(weights: str, tmp_path: Path) -> None:
    """To the rounding of activations; bf16 rounds them before a product, which the neurons' kernel need not."""
    member = SLOT.make(f"cats:profile={profile_of(tmp_path)},sparsity=0")
    form = make(weights)
    dense = random(ARCHITECTURE, 3, torch.float32, form=form)
    sparse = random(member.adapt(ARCHITECTURE), 3, torch.float32, form=form)
    assert sparse.weight_bytes <= dense.weight_bytes, "nothing is kept twice"
    tokens = [(3 * i * i) % models.VOCAB for i in range(40)]
    with torch.inference_mode():
        hidden = [d.forward(batch_of(tokens), DenseKV(ARCHITECTURE)) for d in (dense, sparse)]
    limit = 1e-5 if weights == "plain" else 0.05
    assert (hidden[0] - hidden[1]).abs().max() < limit


def test_rows_are_the_same_in_any_batch(tmp_path: Path) -> None:
    """One row, some, or more than a pass takes at once."""
    member = SLOT.make(f"cats:profile={profile_of(tmp_path)},sparsity=0.3")
    made = random(member.adapt(ARCHITECTURE), 3, torch.float32, form=make("bf16"))
    x_TD = torch.randn(300, 16, generator=torch.Generator().manual_seed(1))
    mlp = made.blocks[0].mlp
    whole = mlp(x_TD)
    for first, stop in ((0, 1), (17, 25), (250, 300), (40, 52)):
        assert torch.equal(mlp(x_TD[first:stop]), whole[first:stop])


def test_steps_are_played_back(tmp_path: Path) -> None:
    profile = tmp_path / "tiny.json"
    assert cli.main(["profile", "--of", "neurons", "--tokens", "64", "--out", str(profile), "--quiet"]) == 0
    texts = []
    for record in (True, False):
        stack = {"weights": "bf16", "skipper": f"cats:profile={profile},sparsity=0.4"}
        with LLM("tiny", stack=stack, threads=1) as llm:
            runner = llm.engine.runner
            assert runner.recordings is not None
            if not record:
                runner.recordings = None
            params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
            [output] = llm.generate(["def f(x):"], params, progress=False)
            texts.append(output.samples[0].token_ids)
            assert not record or (len(runner.recordings or ()) and not runner.recordings.refused)
    assert texts[0] == texts[1]


def test_the_verb_writes_what_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, text = tmp_path / "neurons.json", tmp_path / "text.txt"
    text.write_text("The mill turns. " * 40)
    argv = ["profile", "--of", "neurons", "--out", str(out), "--text", str(text), "--tokens", "40", "--json"]
    assert cli.main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] > 40 and all(layer[25] < layer[75] for layer in found["quantiles"])
    argv = ["run", "def f(x):", "--max-tokens", "4", "--skipper", f"cats:profile={out}", "--temperature", "0"]
    assert cli.main(argv) == 0


def test_the_share_that_leaves_is_that_of_the_profile(tmp_path: Path) -> None:
    """On other text of the same kind, within some points."""
    found = watch(decoder := models.decoder.__wrapped__("full"))
    with torch.inference_mode():
        decoder.forward(batch_of([(7 * i) % 61 for i in range(90)]), Probe(ARCHITECTURE, 45))
    write_profile(tmp_path / "n.json", ARCHITECTURE, found)
    limits = thresholds(str(tmp_path / "n.json"), ARCHITECTURE, 0.5)
    other = watch(again := models.decoder.__wrapped__("full"))
    with torch.inference_mode():
        again.forward(batch_of([(5 * i * i + 2) % 61 for i in range(90)]), Probe(ARCHITECTURE, 45))
    for limit, layer in zip(limits, other, strict=True):
        assert 40 <= sum(value < limit for value in layer) <= 60


def test_adapters_of_what_leaves_are_refused(tmp_path: Path) -> None:
    member = SLOT.make(f"cats:profile={profile_of(tmp_path)}")
    known = sites(member.adapt(ARCHITECTURE), Llama.names)
    modules = {name.rpartition(".")[2] for name in known}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"}
    assert known["model.layers.0.mlp.gate_proj"].product == "blocks.0.mlp.gate"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda path: path.unlink(), "cannot read"),
        (lambda path: path.write_text("{}"), "no profile"),
        (lambda path: path.write_text(path.read_text().replace("llama", "qwen2")), "another model"),
        (lambda path: path.write_text(path.read_text().replace("[24,24]", "[24,25]")), "another model"),
        (lambda path: path.write_text(path.read_text().replace("0.01,", "0.5,")), "do not rise"),
    ],
)
def test_profiles_that_do_not_fit(tmp_path: Path, change, match: str) -> None:
    path = Path(profile_of(tmp_path))
    change(path)
    with pytest.raises(ConfigError, match=match) as caught:
        thresholds(str(path), ARCHITECTURE, 0.5)
    assert "headrace profile --of neurons" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", ["int4", "int8", "int4_dual"])
def test_formats_that_pack_outputs_together_are_refused(weights: str, tmp_path: Path) -> None:
    stack = {"skipper": f"cats:profile={profile_of(tmp_path)}", "weights": weights}
    with pytest.raises(ConfigError, match="float_weights.*Nearest stack that runs"):
        Engine(EngineConfig(stack=stack, threads=1))


@pytest.mark.parametrize("spec", ["cats", "cats:profile=x,sparsity=1", "cats:profile=x,sparsity=-0.1"])
def test_options_that_are_none(spec: str) -> None:
    with pytest.raises(ConfigError):
        SLOT.make(spec)
