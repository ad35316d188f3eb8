"""duo: heads that retrieve keep everything, the others give their pages up; and the profile finds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from headrace import cli
from headrace.architecture import Architecture
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.kv.heads import Probe, read_profile, write_profile
from headrace.kv.layouts import SLOT
from headrace.params import SamplingParams
from headrace.types import Request
from tests.models.dense_kv import DenseKV, batch_of
from tests.whole import models
from tests.whole.drive import Outputs, collect, nothing_left


def profile_of(tmp_path: Path, model: str, scores: list[list[float]]) -> str:
    write_profile(tmp_path / "heads.json", models.decoder(model).architecture, scores)
    return str(tmp_path / "heads.json")


def run(layout: str, **options: object) -> tuple[Outputs, Engine]:
    stack = {"kv-layout": layout, "policy": "sarathi:tokens=5,idle=9"}
    made = Engine(
        EngineConfig(stack=stack, page_tokens=4, threads=1, **options),
        decoder=models.decoder("full"),
        poison=True,
    )
    for i, length in enumerate((33, 7, 50)):
        prompt = tuple((7 * i + 5 * k) % models.VOCAB for k in range(length))
        params = SamplingParams(temperature=0.7, seed=i, n=2, max_tokens=20, ignore_eos=True)
        made.add(Request(id=str(i), prompt=prompt, params=params, arrival=float(i)))
    found = collect(made)
    nothing_left(made)
    return found, made


def test_heads_are_chosen_by_their_scores(tmp_path: Path) -> None:
    path = profile_of(tmp_path, "full", [[0.1, 0.9], [0.3, 0.2]])
    architecture = models.decoder("full").architecture
    full, rest = SLOT.make(f"duo:profile={path},share=0.5,sink=2,window=8").groups(architecture)
    assert [(m.layer, m.kv_heads) for m in full.members] == [(0, (1,)), (1, (0,))]
    assert [(m.layer, m.kv_heads) for m in rest.members] == [(0, (0,)), (1, (1,))]
    assert (full.window, rest.window, rest.sink) == (None, 8, 2)
    [only] = SLOT.make(f"duo:profile={path},share=1").groups(architecture)
    assert only.window is None
    path = profile_of(tmp_path, "mixed", [[1, 1], [0, 1]])
    windows = SLOT.make(f"duo:profile={path},share=0.5").groups(models.decoder("mixed").architecture)
    assert [(g.window, g.sink) for g in windows] == [(None, 0), (7, 0), (252, 4)]


def test_with_every_head_kept_it_is_exact(tmp_path: Path) -> None:
    path = profile_of(tmp_path, "full", [[0, 0], [0, 0]])
    assert run(f"duo:profile={path},share=1")[0] == run("single")[0]
    assert run(f"duo:profile={path},share=0.5,sink=4,window=96")[0] == run("single")[0], (
        "no window was ever left"
    )


def test_tokens_do_not_depend_on_the_schedule(tmp_path: Path) -> None:
    """Chunks, prefix hits and pauses: what a head sees is a matter of the position."""
    path = profile_of(tmp_path, "full", [[0.1, 0.9], [0.3, 0.2]])
    layout = f"duo:profile={path},share=0.5,sink=2,window=8"
    alone, made = run(layout, prefix_cache=False)
    page = made.kv.tables.sizes.page_bytes
    assert run(layout)[0] == alone
    tight, pressed = run(layout, kv_bytes=44 * page, context=72)
    assert tight == alone and pressed.counters.recomputes > 0


def test_memory_of_the_others_is_given_back(tmp_path: Path) -> None:
    path = profile_of(tmp_path, "full", [[0.1, 0.9], [0.3, 0.2]])
    config = EngineConfig(
        stack={"kv-layout": f"duo:profile={path},share=0.25,sink=2,window=8"}, page_tokens=4, threads=1
    )
    made = Engine(config, decoder=models.decoder("full"), poison=True)
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    made.add(Request(id="r", prompt=tuple(i % models.VOCAB for i in range(90)), params=params))
    made.step()
    made.step()
    [seq] = made.queues
    holding = made.kv.tables.holding(seq.id, seq.num_computed)
    sizes = made.kv.tables.sizes.tokens
    assert holding.live[1] <= -(-2 // sizes[1]) + -(-8 // sizes[1]) + 1 < holding.listed[1]
    assert holding.live[0] == holding.listed[0]


def test_the_profile_finds_a_head_that_retrieves() -> None:
    """Queries and keys by hand: kv head 1 looks one period back and one on, kv head 0 at its neighbour."""
    architecture: Architecture = models.decoder("full").architecture
    period, T = 16, 48
    probe = Probe(architecture, period)
    eye = torch.eye(T, dtype=torch.float64)
    k = torch.stack([eye, eye], dim=1)
    q = torch.zeros(T, 4, T, dtype=torch.float64)
    for t in range(T):
        q[t, 0, max(0, t - 1)] = q[t, 1, max(0, t - 1)] = 50
        q[t, 2, max(0, t - period + 1)] = 50
    batch = batch_of([1] * T)
    probe.attend(0, q, k, torch.zeros(T, 2, T, dtype=torch.float64), batch)
    [[near, far]] = probe.scores
    assert near < 0.01 and far > 0.95


def test_the_probe_attends_as_a_model_does() -> None:
    for model in ("full", "mixed"):
        decoder = models.decoder(model)
        batch = batch_of([i % 7 for i in range(30)])
        with torch.inference_mode():
            dense = decoder.forward(batch, DenseKV(decoder.architecture))
            probed = decoder.forward(batch, Probe(decoder.architecture, 7))
        torch.testing.assert_close(probed, dense, atol=1e-4, rtol=1e-4)


def test_the_verb_writes_what_the_layout_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tiny.json"
    assert cli.main(["profile", "--model", "tiny", "--out", str(out), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    best = max(max(layer) for layer in scores)
    assert best > 0.2 > sorted(score for layer in scores for score in layer)[len(scores) // 2]
    argv = [
        "run",
        "def f(x):",
        "--max-tokens",
        "8",
        "--temperature",
        "0",
        "--kv-layout",
        f"duo:profile={out}",
    ]
    assert cli.main(argv) == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda path: path.unlink(), "cannot read"),
        (lambda path: path.write_text("{}"), "no profile"),
        (lambda path: path.write_text(path.read_text().replace("llama", "qwen2")), "another model"),
        (lambda path: path.write_text(path.read_text().replace("[0.3,0.2]", "[0.3]")), "another model"),
    ],
)
def test_profiles_that_do_not_fit(tmp_path: Path, change, match: str) -> None:
    path = Path(profile_of(tmp_path, "full", [[0.1, 0.9], [0.3, 0.2]]))
    change(path)
    with pytest.raises(ConfigError, match=match) as caught:
        read_profile(str(path), models.decoder("full").architecture)
    assert "headrace profile" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["duo", "duo:profile=x,share=2", "duo:profile=x,window=0"])
def test_options_that_are_none(spec: str) -> None:
    with pytest.raises(ConfigError):
        SLOT.make(spec)
