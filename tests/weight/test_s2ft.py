"""S2FT folders that cannot be served: each is one line that names the file, and the module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.errors import ModelError
from headrace.models.llama import Llama
from headrace.weight.adapter import AdapterFiles, open_adapter, sites
from tests.weight import folders, s2ft_folders

ARCHITECTURE = folders.architecture_of(folders.CONFIG)
OUT, QUERY = "model.layers.1.self_attn.o_proj", "model.layers.1.self_attn.q_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return s2ft_folders.write(tmp_path / "s2ft", ARCHITECTURE, 1)


def load(folder: Path) -> dict[str, Any]:
    files = AdapterFiles(folder, Llama.names)
    opened = open_adapter(files, sites(ARCHITECTURE, Llama.names), torch.float32, torch.device("cpu"))
    work = opened.load()
    while True:
        try:
            next(work)
        except StopIteration as done:
            return dict(done.value)


def test_a_good_folder(folder: Path) -> None:
    found = load(folder)
    assert len(found) == 8  # two layers of four products
    weight = found["blocks.1.attention.qkv"].weight
    assert weight.up.dtype == torch.int64 and len(weight.up) == 15, "chosen outputs of query, key and value"
    assert found["blocks.1.attention.out"].weight.down.tolist()[:2] == [0, 1]


@pytest.mark.parametrize(
    ("slices", "match"),
    [
        ([[0, 4]], "has shape"),
        ([[0, 2], [1, 3]], r"\[1, 3\] is not"),
        ([[2, 2]], r"\[2, 2\] is not"),
        ([[-1, 3]], r"is not \[first, stop\] in 0 to"),
        ([[0, 10**9]], "is not"),
        ([[0, 2.5]], "is not"),
        ([[0, True]], "is not"),
        ([0, 5], "is not"),
        ([], "is no list"),
        ("0-5", "is no list"),
        (None, "is no list"),
    ],
)
def test_slices_that_are_none(folder: Path, slices: object, match: str) -> None:
    edit(folder, lambda config: config["slices"].update({QUERY: slices}))
    refused(folder, match)


def test_modules_that_do_not_fit_together(folder: Path) -> None:
    edit(folder, lambda config: config["slices"].update({"model.layers.7.mlp.up_proj": [[0, 1]]}))
    refused(folder, "which has no tensor")
    edit(folder, lambda config: config["slices"].pop("model.layers.7.mlp.up_proj"))
    edit(folder, lambda config: config["slices"].pop(OUT))
    refused(folder, f"says nothing of {OUT}")
    edit(folder, lambda config: config.update(slices=[1]))
    refused(folder, "slices must give")
    edit(folder, lambda config: config.update(slices={}, rank=4))
    refused(folder, "rank")


def test_tensors_that_do_not_fit(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    good = load_file(file)
    name = f"base_model.model.{QUERY}.s2ft_out.weight"
    for change, match in (
        ({f"base_model.model.{QUERY}.s2ft_in.weight": torch.zeros(32, 5)}, "not both its outputs|ask for"),
        ({f"{QUERY}.s2ft_out.weight": good[name].clone()}, "two tensors"),
        ({name: torch.full_like(good[name], torch.nan)}, "NaN"),
        ({"base_model.model.lm_head.s2ft_out.weight": torch.zeros(5, 16)}, "none of this model's"),
        ({f"base_model.model.{QUERY}.lora_A.weight": torch.zeros(5, 16)}, "is not the difference"),
    ):
        save_file({**good, **change}, file)
        refused(folder, match)


def edit(folder: Path, change: Any) -> None:
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
