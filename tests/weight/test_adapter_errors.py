"""LoRA folders that cannot be served: each is one line that names the file, and the tensor or key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.errors import ModelError
from headrace.models.gemma3 import Gemma3
from headrace.models.llama import Llama
from headrace.models.mixtral import Mixtral
from headrace.models.phi3 import Phi3
from headrace.weight.adapter import AdapterFiles, open_adapter, sites
from tests.weight import folders, lora_folders

ARCHITECTURE = folders.architecture_of(folders.CONFIG)
RANK = 4
AT = "base_model.model.model.layers.1.self_attn.v_proj"


def load(folder: Path) -> dict[str, Any]:
    """All of it, as an engine does."""
    files = AdapterFiles(folder, Llama.names)
    work = open_adapter(files, sites(ARCHITECTURE, Llama.names), torch.float32, torch.device("cpu")).load()
    while True:
        try:
            next(work)
        except StopIteration as done:
            return dict(done.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lora_folders.write(tmp_path / "lora", ARCHITECTURE, RANK, 1)


def test_a_good_folder(folder: Path) -> None:
    found = load(folder)
    assert sorted(found) == sorted(
        f"blocks.{i}.{p}"
        for i in (0, 1)
        for p in ("attention.out", "attention.qkv", "mlp.down", "mlp.gate_up")
    )


REFUSED = {
    "use_dora": (True, "DoRA"),
    "modules_to_save": (["lm_head"], "modules_to_save"),
    "bias": ("lora_only", "bias"),
    "lora_bias": (True, "lora_bias"),
    "rank_pattern": ({"q_proj": 8}, "rank_pattern"),
    "alpha_pattern": ({"q_proj": 8}, "alpha_pattern"),
    "trainable_token_indices": ([1], "embedding"),
    "init_lora_weights": ("pissa", "convert it"),
    "peft_type": ("IA3", "known: LORA, S2FT"),
    "r": (65, "between 1 and 64"),
    "lora_alpha": ("16", "lora_alpha"),
    "something_new": (1, "something_new"),
    "target_modules": (["q_proj", "w_pack"], "w_pack"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_settings_that_would_not_be_carried_out(folder: Path, key: str) -> None:
    value, match = REFUSED[key]
    config = {**lora_folders.config(RANK), key: value}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=match) as caught:
        load(folder)
    assert "adapter_config.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("rank", [0, -1, 10**6, 4.0, "4", None, True])
def test_ranks_that_are_none(folder: Path, rank: object) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({**lora_folders.config(RANK), "r": rank}))
    with pytest.raises(ModelError, match="between 1 and 64"):
        load(folder)


SPOILT: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "wrong-rank": (lambda t: t.update({f"{AT}.lora_A.weight": torch.zeros(5, 16)}), r"v_proj\.lora_A.*\[4, 16\]"),
    "wrong-inputs": (lambda t: t.update({f"{AT}.lora_A.weight": torch.zeros(RANK, 17)}), r"v_proj\.lora_A.*\[4, 16\]"),
    "wrong-outputs": (lambda t: t.update({f"{AT}.lora_B.weight": torch.zeros(16, RANK)}), r"v_proj\.lora_B.*\[8, 4\]"),
    "transposed": (lambda t: t.update({f"{AT}.lora_B.weight": torch.zeros(RANK, 8)}), r"v_proj\.lora_B.*\[8, 4\]"),
    "one-axis": (lambda t: t.update({f"{AT}.lora_B.weight": torch.zeros(32)}), r"v_proj\.lora_B.*\[8, 4\]"),
    "half-a-pair": (lambda t: t.pop(f"{AT}.lora_B.weight"), "no matrix lora_B"),
    "no-such-layer": (
        lambda t: t.update({"base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight": torch.zeros(4, 16)}),
        r"adapts model\.layers\.2\.self_attn\.q_proj",
    ),
    "head": (
        lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 16)}),
        "adapts lm_head",
    ),
    "embedding": (
        lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 64)}),
        "lora_embedding_A is not",
    ),
    "longer-vocabulary": (
        lambda t: t.update({"base_model.model.model.embed_tokens.weight": torch.zeros(70, 16)}),
        r"embed_tokens\.weight is not",
    ),
    "dora": (
        lambda t: t.update({f"{AT}.lora_magnitude_vector": torch.zeros(8)}),
        "lora_magnitude_vector is not",
    ),
    "bias": (lambda t: t.update({f"{AT}.lora_B.bias": torch.zeros(8)}), r"lora_B\.bias is not"),
    "integers": (
        lambda t: t.update({f"{AT}.lora_B.weight": torch.zeros(8, RANK, dtype=torch.int8)}),
        "stored as I8",
    ),
    "nan": (lambda t: t[f"{AT}.lora_B.weight"].fill_(torch.nan), r"v_proj\.lora_B\.weight holds a NaN"),
    "twice": (
        lambda t: t.update({f"{AT}.lora_A.default.weight": torch.zeros(RANK, 16)}),
        "same matrix",
    ),
    "nothing": (lambda t: t.clear(), "has no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILT)
def test_tensors_that_do_not_fit(folder: Path, spoil: str) -> None:
    change, match = SPOILT[spoil]
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(ModelError, match=match) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_damaged(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    data = file.read_bytes()
    for wrong in (
        data[:-1],
        data[:20],
        b"",
        data + b"x",
        b"\xff" * 8 + data[8:],
        data[:40] + b"}" + data[41:],
    ):
        file.write_bytes(wrong)
        with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
            load(folder)
    file.unlink()
    with pytest.raises(ModelError, match="no file adapter_model.safetensors"):
        load(folder)
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match="save_pretrained"):
        load(folder)
    file.write_bytes(data)
    for text in (b"", b"[]", b"{", b'{"r": ' + b"[" * 100_000, b" " * (2 << 20)):
        (folder / "adapter_config.json").write_bytes(text)
        with pytest.raises(ModelError, match="adapter_config.json"):
            load(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="no file adapter_config.json"):
        load(folder)


def test_every_flipped_byte_of_a_header_is_an_error_or_a_load(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    stop = 8 + int.from_bytes(data[:8], "little")
    for at in range(0, stop, 7):
        changed = bytearray(data)
        changed[at] ^= 0x41
        file.write_bytes(changed)
        try:
            load(folder)
        except ModelError as error:
            assert "\n" not in str(error)


def test_sites_of_families() -> None:
    """Fused tensors are one site; experts, routers, embedding and head are none."""
    fused = sites(ARCHITECTURE, Phi3.names)
    qkv = fused["model.layers.0.self_attn.qkv_proj"]
    assert (qkv.product, qkv.first, qkv.outputs, qkv.inputs) == ("blocks.0.attention.qkv", 0, 32, 16)
    up = sites(ARCHITECTURE, Llama.names)["model.layers.1.mlp.up_proj"]
    assert (up.product, up.first, up.outputs, up.inputs) == ("blocks.1.mlp.gate_up", 24, 24, 16)
    config = {**folders.CONFIG, "num_local_experts": 2}
    mixture = Mixtral().architecture(
        folders.parse({k: v for k, v in config.items() if k != "architectures"}, Mixtral.schema)
    )
    found = sites(mixture, Mixtral.names)
    assert len(found) == 8 and all("self_attn" in name for name in found)


def test_names_of_a_multimodal_family(folder: Path) -> None:
    files = AdapterFiles(folder, Gemma3.names)
    assert files.standard("model.language_model.layers.0.mlp.up_proj") == "model.layers.0.mlp.up_proj"
