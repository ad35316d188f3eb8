"""Loading: right values, streamed, within the memory that was promised."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from headrace import kernels
from headrace.architecture import Architecture
from headrace.errors import ModelError
from headrace.forward.load import describe, load, random
from headrace.weight import checkpoint
from headrace.weight.assemble import make, places
from headrace.weight.load import read_weights
from headrace.weight.names import shapes
from tests.weight import folders
from tests.weight.folders import CONFIG, SINGLE


@pytest.mark.parametrize("chunk", [64, 16 << 20])
@pytest.mark.parametrize("write", [folders.write, folders.write_shards])
def test_every_value_arrives(write, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "CHUNK", chunk)
    folder = write(tmp_path / "model")
    described = describe(folder)
    got = read_weights(folder, described.architecture, described.family.names, torch.float64)
    where, _ = places(described.architecture)
    for source, parts in described.family.names.plan(described.architecture).items():
        ((name, shape),) = parts
        place = where[name]
        whole = got.tensors[place.name] if len(shape) == 1 else got.matrices[place.name].weight_OI
        assert torch.equal(
            whole[place.first : place.first + shape[0]], folders.tensors_of(CONFIG)[source].double()
        )


def test_links_are_followed(tmp_path: Path) -> None:
    """A download cache keeps files elsewhere and links to them."""
    folder = folders.write(tmp_path / "model")
    (folder / SINGLE).rename(tmp_path / "blob")
    (folder / SINGLE).symlink_to(tmp_path / "blob")
    assert load(folder, torch.float32).decoder.weight_bytes == weight_bytes(
        describe(folder).architecture, torch.float32
    )


def test_harmless_extras_are_left_out(tmp_path: Path) -> None:
    tied = {**CONFIG, "tie_word_embeddings": True}
    tensors = folders.tensors_of(tied)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)
    decoder = load(folders.write(tmp_path / "model", tied, tensors), torch.float32).decoder
    assert decoder.head.matrix is decoder.embed.table


def test_progress_counts_up_to_the_whole(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    load(
        folders.write(tmp_path / "model"),
        torch.bfloat16,
        progress=lambda done, total: calls.append((done, total)),
    )
    done = [count for count, _ in calls]
    assert done == sorted(done)
    assert (
        {total for _, total in calls}
        == {done[-1]}
        == {weight_bytes(folders.architecture_of(CONFIG), torch.float32)}
    )


def test_generation_defaults_and_end_tokens(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "model", {**CONFIG, "eos_token_id": 7, "bos_token_id": 1})
    given = {
        "eos_token_id": [9, 7],
        "temperature": 0.6,
        "top_k": 20,
        "top_p": None,
        "do_sample": True,
        "_x": 1,
    }
    (folder / "generation_config.json").write_text(json.dumps(given))
    loaded = load(folder, torch.float32)
    assert (loaded.architecture.eos, loaded.architecture.bos) == ((9, 7), 1)
    assert loaded.generation == {"temperature": 0.6, "top_k": 20}


def test_another_architecture_replaces_what_the_folder_says(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "model")
    described = describe(folder)
    short = folders.architecture_of({**CONFIG, "max_position_embeddings": 8})
    loaded = load(folder, torch.float32, architecture=short)
    assert described.architecture.context == 32
    assert loaded.architecture is loaded.decoder.architecture is short


def weight_bytes(architecture: Architecture, dtype: torch.dtype) -> int:
    return sum(math.prod(shape) for shape in shapes(architecture).values()) * dtype.itemsize


SPECS = ("plain", "bf16", "int8", "int4:asymmetric=true")
PEAK = """
import os, sys, torch
from headrace.forward.load import load
from headrace.weight.assemble import make
torch.set_num_threads(1)

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

def measure(form):
    load(sys.argv[1], torch.float32, form=form)  # whatever is allocated once
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = status("VmRSS:")
    loaded = load(sys.argv[2], torch.float32, form=form)
    print(status("VmHWM:") - before, loaded.decoder.weight_bytes, flush=True)

for spec in sys.argv[3:]:  # a process each, that need not import everything
    child = os.fork()
    if child == 0:
        measure(make(spec))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, spec
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 checkpoint of 60 MB, whose last tensors have 8 MB each."""
    config = {
        **CONFIG,
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 8192,
    }
    return folders.write(tmp_path_factory.mktemp("large"), config, folders.tensors_of(config, torch.bfloat16))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's peak counter")
def test_peak_memory_is_the_weights_and_a_chunk(large: Path, tmp_path: Path) -> None:
    """Measured in processes of its own. A tensor as float32, or a second copy of one, is more than is allowed."""
    specs = SPECS[:1] if kernels.isa() == kernels.REFERENCE else SPECS  # the PyTorch twins have temporaries
    small = folders.write(tmp_path / "small")
    run = subprocess.run(
        [sys.executable, "-c", PEAK, small, large, *specs], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    for spec, line in zip(specs, run.stdout.splitlines(), strict=True):
        peak, weights = map(int, line.split())
        assert weights > 10e6
        most = weights + checkpoint.CHUNK + 4.5e6  # rows to time kernels with, among others
        assert 0.98 * weights <= peak <= most, spec


def test_files_are_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "model")
    entries = {entry.name: entry for entry in checkpoint.read_header(folder / SINGLE)}
    for name, want in load_file(folder / SINGLE).items():
        got = torch.cat([chunk.clone() for chunk in entries[name].chunks(0, want.shape[0])]).view(want.shape)
        assert torch.equal(got, want)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_cannot_be_rounded_are_named(value: float, tmp_path: Path) -> None:
    tensors = folders.tensors_of(CONFIG, torch.bfloat16)
    tensors["model.layers.1.self_attn.k_proj.weight"][3, 5] = value
    folder = folders.write(tmp_path / "model", CONFIG, tensors)
    load(folder, torch.float32)  # as it is stored
    with pytest.raises(ModelError, match=r"blocks\.1\.attention\.qkv\.weight: some weights are infinite"):
        load(folder, torch.float32, form=make("int4"))


def test_progress_of_random_weights() -> None:
    calls: list[tuple[int, int]] = []
    architecture = folders.architecture_of(CONFIG)
    random(architecture, 0, torch.bfloat16, progress=lambda *call: calls.append(call), form=make("int4"))
    assert calls == sorted(calls)
    assert calls[-1] == (weight_bytes(architecture, torch.bfloat16),) * 2


def test_random_weights_have_the_same_values_in_every_dtype() -> None:
    architecture = folders.architecture_of(CONFIG)
    exact, rounded = random(architecture, 3, torch.float64), random(architecture, 3, torch.bfloat16)
    assert torch.equal(exact.head.matrix.weight_OI.bfloat16(), rounded.head.matrix.weight_OI)
    other = random(architecture, 4, torch.float64)
    assert not torch.equal(exact.head.matrix.weight_OI, other.head.matrix.weight_OI)


def test_random_weights_larger_than_the_pool_have_no_equal_rows() -> None:
    config = {**CONFIG, "vocab_size": 80_000, "num_hidden_layers": 1}
    table_VD = random(folders.architecture_of(config), 0, torch.float32).embed.table.weight_OI
    assert len(torch.unique(table_VD, dim=0)) == 80_000


def test_shapes_are_those_of_the_weights() -> None:
    architecture = folders.architecture_of({**CONFIG, "attention_bias": True, "mlp_bias": True})
    decoder = random(architecture)
    assert decoder.weight_bytes == weight_bytes(architecture, torch.float32)
    assert len(shapes(architecture)) == 2 * (2 + 2 * 7) + 3
