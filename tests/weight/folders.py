"""Small Llama folders, written without transformers: good ones, and the parts to spoil them with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from headrace.architecture import Architecture
from headrace.models.llama import Llama
from headrace.weight.config import parse
from headrace.weight.synthetic import random_tensors

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def architecture_of(config: dict[str, Any]) -> Architecture:
    family = Llama()
    return family.architecture(parse(config, family.schema))


def tensors_of(
    config: dict[str, Any], dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    """Random weights under the names of a checkpoint."""
    architecture = architecture_of(config)
    ours = dict(random_tensors(architecture, seed, dtype))
    plan = Llama.names.plan(architecture)
    return {source: ours[name] for source, parts in plan.items() for name, _ in parts}


def write(
    folder: Path, config: dict[str, Any] | None = None, tensors: dict[str, Tensor] | None = None
) -> Path:
    """A whole folder with one safetensors file."""
    config = CONFIG if config is None else config
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors_of(config) if tensors is None else tensors, folder / SINGLE)
    return folder


def write_shards(folder: Path, config: dict[str, Any] | None = None) -> Path:
    """The same in two shards and an index."""
    config = CONFIG if config is None else config
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = tensors_of(config)
    half = len(tensors) // 2
    shards = {
        "model-00001-of-00002.safetensors": [*tensors][:half],
        "model-00002-of-00002.safetensors": [*tensors][half:],
    }
    for shard, names in shards.items():
        save_file({name: tensors[name] for name in names}, folder / shard)
    index = {name: shard for shard, names in shards.items() for name in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def header(data: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file taken apart: (header, data)."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def assemble(head: Any, data: bytes) -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + data
