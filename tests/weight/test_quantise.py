"""From a model folder to a quantised one: what is stored is what runs, and a run that ended early goes on."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError, ModelError
from headrace.forward.calibration import BlockPass
from headrace.forward.load import describe, load
from headrace.models import SLOT as FAMILIES
from headrace.params import SamplingParams
from headrace.types import Request
from headrace.weight import memory
from headrace.weight.assemble import make
from headrace.weight.calibrate import Report, Source, Target, quantise
from headrace.weight.codes import Coded
from headrace.weight.config import read_json
from headrace.weight.recipes import SLOT
from tests.weight import folders, lora_folders
from tests.weight.recipes import models

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    **folders.CONFIG,
    "vocab_size": 70,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
}
IDS = torch.tensor([[(5 * i + 7 * s) % 70 for i in range(20)] for s in range(4)])
INT4 = "int4:group=32"


class Ended(Exception):
    """What the fault point raises."""


def source(folder: Path) -> Source:
    found = describe(folder)
    return Source(folder, read_json(folder / "config.json"), found.architecture, found.family.names)


def run(
    model: Path,
    out: Path,
    recipe: str = "gptq",
    weights: str = INT4,
    ids: torch.Tensor = IDS,
    make_pass: Callable[..., Any] = BlockPass,
) -> Report:
    how = Target(SLOT.make(recipe), make(weights), recipe, weights)
    return quantise(source(model), how, ids, out, make_pass, lambda done, total: None)


def ending(passes: int) -> Callable[..., Any]:
    """Raises when a block is to be run for the so-manieth time."""
    left = passes

    def make_pass(*arguments: Any) -> BlockPass:
        nonlocal left
        left -= 1
        if left < 0:
            raise Ended
        return BlockPass(*arguments)

    return make_pass


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def greedy(model: Path, **stack: str) -> list[int]:
    engine = Engine(EngineConfig(model=str(model), stack=stack, threads=1))
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    engine.add(Request(id="a", prompt=(3, 14, 15, 9, 2), params=params))
    return [token for _ in range(12) for delta in engine.step() for token in delta.tokens]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = folders.write(tmp_path_factory.mktemp("plain") / "model", CONFIG, folders.tensors_of(CONFIG))
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    (folder / "README.md").write_text("figures of other weights")
    return folder


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "gptq"
    run(model, out)
    return out


# ---- what is stored is what runs ----


@pytest.mark.parametrize(
    "weights",
    [
        INT4,
        "int3:group=32,asymmetric=true,head=int4",
        "int4_dual:head=plain",
        "tmac:bits=2,group=32",
        "tmac:bits=1",
    ],
)
def test_rounded_to_nearest_it_runs_as_the_model_rounded_while_loading(
    weights: str, model: Path, tmp_path: Path
) -> None:
    report = run(model, tmp_path / "rtn", "rtn", weights)
    assert report.pieces == 4 and report.resumed == 0 and report.bytes_after < report.bytes_before
    assert (
        greedy(tmp_path / "rtn")
        == greedy(tmp_path / "rtn", weights=weights)
        == greedy(model, weights=weights)
    )


@pytest.mark.parametrize(
    ("recipe", "weights"),
    [
        ("awq", INT4),
        ("gptq", INT4),
        ("qoq", INT4),
        ("gptq", "tmac:bits=2,group=32"),
        ("awq", "tmac:bits=3"),
        ("gptq", "spqr:base=int3:group=32,outliers=0.05"),
    ],
)
def test_stored_codes_are_what_runs(recipe: str, weights: str, model: Path, tmp_path: Path) -> None:
    out = tmp_path / recipe
    run(model, out, recipe, weights)
    loaded, form = load(out, torch.float32), make(weights)
    assert isinstance(form, Coded)
    for layer, block in enumerate(loaded.decoder.blocks):
        stored = load_file(out / f"model-0000{layer + 2}-of-00004.safetensors")
        qkv = torch.cat([stored[f"model.layers.{layer}.self_attn.{p}_proj.weight"] for p in "qkv"])
        assert qkv.dtype is torch.uint8
        running = block.attention.qkv.matrix.rows(torch.arange(len(qkv)))
        assert torch.equal(running, form.values(qkv, 32))
    assert loaded.generation == {"temperature": 0.5}
    assert greedy(out) and not (out / "README.md").exists() and not (out / "unfinished.json").exists()


def test_a_tied_head_that_is_rotated_becomes_its_own(tmp_path: Path) -> None:
    config = {**CONFIG, "tie_word_embeddings": True}
    model = folders.write(tmp_path / "tied", config, folders.tensors_of(config))
    run(model, tmp_path / "qoq", "qoq")
    assert not describe(tmp_path / "qoq").architecture.tied_head and greedy(tmp_path / "qoq")
    run(model, tmp_path / "awq", "awq")
    assert describe(tmp_path / "awq").architecture.tied_head and greedy(tmp_path / "awq")


@pytest.mark.parametrize("name", models.FAMILIES)
def test_a_folder_of_any_family_holds_what_the_recipe_chose(name: str, tmp_path: Path) -> None:
    """Fused tensors, experts and prefixes included: codes on disk are those of the recipe in memory, block by block."""
    kind, config = models.FAMILIES[name]
    architecture, family = models.architecture(name), FAMILIES.load(kind)()  # type: ignore[attr-defined]
    ours = {n: t.float() for n, t in models.tensors(architecture).items()}
    plan = family.names.plan(architecture)
    folder = folders.write(
        tmp_path / "model",
        {"model_type": kind, **config},
        {source: torch.cat([ours[n] for n, _ in parts]) for source, parts in plan.items()},
    )
    form = make(INT4)
    assert isinstance(form, Coded)
    run(folder, tmp_path / "out", "gptq", f"{INT4},head=plain", IDS % 48)
    want = models.treat(SLOT.make("gptq"), architecture, ours, (IDS % 48).tolist(), form)
    loaded = load(tmp_path / "out", torch.float32).decoder
    for layer, block in enumerate(loaded.blocks):
        out = f"blocks.{layer}.attention.out.weight"
        assert torch.equal(block.attention.out.matrix.rows(torch.arange(len(want[out]))), want[out])
        parts = [want[f"blocks.{layer}.attention.{part}.weight"] for part in "qkv"]
        qkv = block.attention.qkv.matrix
        assert torch.equal(qkv.rows(torch.arange(sum(map(len, parts)))), torch.cat(parts))
    run(folder, tmp_path / "rtn", "rtn")
    assert greedy(tmp_path / "rtn") == greedy(folder, weights=INT4)


# ---- runs that end early ----


@pytest.mark.parametrize("passes", [0, 1, 2, 3, 4])
def test_a_run_that_ended_goes_on_to_the_same_bytes(
    passes: int, model: Path, made: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Ended):
        run(model, out, make_pass=ending(passes))
    with pytest.raises(ModelError, match="is an unfinished run of `headrace quantize`"):
        describe(out)
    report = run(model, out)
    assert report.resumed == 1 + (passes + 1) // 2
    assert content(out) == content(made)


def test_a_killed_process_goes_on_to_the_same_bytes(model: Path, made: Path, tmp_path: Path) -> None:
    """Killed while it calibrates the second block, when nobody can tidy up."""
    code = (
        "import os, signal, torch, sys; from pathlib import Path; from tests.weight import test_quantise as t\n"
        "torch.set_num_threads(1); stop = t.ending(2)\n"
        "def killed(*a):\n"
        "    try: return stop(*a)\n"
        "    except t.Ended: os.kill(os.getpid(), signal.SIGKILL)\n"
        "t.run(Path(sys.argv[1]), Path(sys.argv[2]), make_pass=killed)\n"
    )
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", code, model, out], cwd=ROOT, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL and sorted(content(out))[-1] == "unfinished.json"
    (out / "model-00003-of-00004.safetensors.part").write_bytes(b"cut short")
    assert run(model, out).resumed == 2
    assert content(out) == content(made)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As if the disk were full beyond that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(model: Path, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with files_of_at_most(6000), pytest.raises(ConfigError, match="cannot write .* to go on from here"):
        run(model, out)
    run(model, out)
    assert content(out) == content(made)


# ---- refusals ----


def test_a_folder_of_another_run_is_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Ended):
        run(model, out, make_pass=ending(1))
    before = content(out)
    other = folders.write(tmp_path / "other", CONFIG, folders.tensors_of(CONFIG, seed=1))
    for what, changed in {
        "model": {"model": other},
        "recipe": {"model": model, "recipe": "gptq:damp=0.02"},
        "weights": {"model": model, "weights": "int4:group=32,head=int4"},
        "calibration text": {"model": model, "ids": IDS + 1 - 2 * (IDS == 69)},
    }.items():
        with pytest.raises(ConfigError, match=f"an unfinished run with another {what} .*remove it, or name"):
            run(out=out, **changed)  # type: ignore[arg-type]
    assert content(out) == before
    assert run(model, out).resumed == 2


def test_a_folder_with_anything_else_is_refused(model: Path, made: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out, name in ((tmp_path, "notes.txt"), (made, "config.json")):
        with pytest.raises(ConfigError, match=rf"the folder is not empty \({name}\): name another"):
            run(model, out)
    with pytest.raises(ConfigError, match="cannot make the folder"):
        run(model, tmp_path / "notes.txt" / "out")


def test_what_no_recipe_can_choose_is_refused(model: Path, tmp_path: Path) -> None:
    for weights in ("plain", "bf16"):
        with pytest.raises(ConfigError, match=f"--weights {weights} has no codes .*such as int4:group=128"):
            run(model, tmp_path / "out", weights=weights)
    assert not (tmp_path / "out").exists()


def test_too_little_memory_or_disk_is_said_before_anything_is_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1 << 20)
    with pytest.raises(ModelError, match="quantising .* needs .* are free"):
        run(model, tmp_path / "out", make_pass=ending(0))
    monkeypatch.undo()
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("headrace.weight.quantised.shutil.disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match="GB are free on that disk"):
        run(model, tmp_path / "out2", make_pass=ending(0))


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    tensors = folders.tensors_of(CONFIG)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    model = folders.write(tmp_path / "nan", CONFIG, tensors)
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj.weight holds a NaN or an infinity"):
        run(model, tmp_path / "out")


def broken(made: Path, into: Path) -> Path:
    into.mkdir()
    for name, data in content(made).items():
        (into / name).write_bytes(data)
    return into


def test_another_format_than_the_stored_one_is_refused(made: Path) -> None:
    for weights in ("int4", "int8", "plain", "int4:group=32,head=int4"):
        with pytest.raises(
            ConfigError, match=r"keeps its weights as int4:group=32 \(recipe gptq\), not as .*leave"
        ):
            greedy(made, weights=weights)
    assert greedy(made, weights="int4:group=32,asymmetric=false") == greedy(made)


def test_an_adapter_of_the_model_fits_only_where_products_read_the_same(model: Path, tmp_path: Path) -> None:
    adapter = lora_folders.write(tmp_path / "lora", load(model, torch.float32).architecture, 2, 0)
    for recipe in ("gptq", "awq"):
        run(model, tmp_path / recipe, recipe)
    Engine(EngineConfig(model=str(tmp_path / "gptq"), adapters={"a": str(adapter)}, threads=1))
    with pytest.raises(
        ConfigError, match="quantised with the recipe awq, which changed what its products read"
    ):
        Engine(EngineConfig(model=str(tmp_path / "awq"), adapters={"a": str(adapter)}, threads=1))


NOTES = {
    "an unknown format": ({"weights": "int44"}, "quantization_config: weights: no technique called 'int44'"),
    "a newer note": ({"version": 2}, "version=2 is not known here"),
    "an unknown key": ({"zeros": 1}, "quantization_config: .*unknown field `zeros`"),
    "folds that are no answer": ({"folds": "yes"}, "Expected `bool`"),
    "no format": ({"weights": ...}, "quantization_config: .*missing required field `weights`"),
    "another group": ({"weights": "int4:group=64"}, r"codes of this format are U8 \[70, 34\]|U8"),
    "floats": ({"weights": "plain"}, "weights=plain has no codes that a folder keeps"),
    "another method": ({"quant_method": "gguf"}, "this checkpoint is quantised"),
}


@pytest.mark.parametrize("what", NOTES)
def test_a_wrong_note_is_refused(what: str, made: Path, tmp_path: Path) -> None:
    change, message = NOTES[what]
    folder = broken(made, tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    note = {k: v for k, v in {**config["quantization_config"], **change}.items() if v is not ...}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": note}))
    with pytest.raises(ModelError, match=message):
        greedy(folder)


def test_damaged_codes_are_refused(made: Path, tmp_path: Path) -> None:
    folder = broken(made, tmp_path / "broken")
    shard, name = folder / "model-00002-of-00004.safetensors", "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(shard)
    good = tensors[name].clone()
    tensors[name][5] = 255
    save_file(tensors, shard)
    with pytest.raises(ModelError, match="the checkpoint is damaged"):
        greedy(folder)
    save_file({**tensors, name: good.float()}, shard)
    with pytest.raises(ModelError, match=rf"{name} is F32 .* quantise the model again"):
        greedy(folder)


def test_a_piece_of_another_run_under_our_name_is_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Ended):
        run(model, out, make_pass=ending(1))
    save_file({"strange": torch.zeros(3)}, out / "model-00001-of-00004.safetensors")
    with pytest.raises(ConfigError, match="holds other tensors than this run writes"):
        run(model, out)
