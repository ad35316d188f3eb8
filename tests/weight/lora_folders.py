"""LoRA folders as PEFT writes them, made without it; and the model that one is merged into."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from headrace.architecture import Architecture
from headrace.forward.decoder import Decoder
from headrace.models.llama import Llama
from headrace.weight.adapter import sites
from headrace.weight.assemble import Weights
from headrace.weight.formats.plain import PlainMatrix
from headrace.weight.synthetic import random_weights

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def tensors(
    architecture: Architecture,
    rank: int,
    seed: int,
    *,
    modules: Iterable[str] = MODULES,
    dtype: torch.dtype = torch.float32,
    strength: float = 1.0,
) -> dict[str, Tensor]:
    """Random matrices that change the output visibly: `strength` times what a model's own weights are like."""
    random = torch.Generator().manual_seed(seed)
    made = {}
    for module, site in sites(architecture, Llama.names).items():
        if module.rpartition(".")[2] in modules:
            at = f"base_model.model.{module}"
            down = torch.randn(rank, site.inputs, generator=random) / math.sqrt(site.inputs)
            up = torch.randn(site.outputs, rank, generator=random) * strength / math.sqrt(rank)
            made[f"{at}.lora_A.weight"], made[f"{at}.lora_B.weight"] = down.to(dtype), up.to(dtype)
    return made


def config(rank: int, modules: Iterable[str] = MODULES, **others: Any) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(modules),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "task_type": "CAUSAL_LM",
        "lora_dropout": 0.05,
        "rank_pattern": {},
        "base_model_name_or_path": "somewhere/else",
        **others,
    }


def write(folder: Path, architecture: Architecture, rank: int, seed: int, **options: Any) -> Path:
    """A whole folder. Options of `tensors`; the others go into adapter_config.json."""
    given = {key: options.pop(key) for key in ("modules", "dtype", "strength") if key in options}
    folder.mkdir(parents=True, exist_ok=True)
    made = tensors(architecture, rank, seed, **given)
    (folder / "adapter_config.json").write_text(
        json.dumps(config(rank, given.get("modules", MODULES), **options))
    )
    save_file(made, folder / "adapter_model.safetensors")
    return folder


def merged(architecture: Architecture, seed: int, found: dict[str, Tensor], scale: float) -> Decoder:
    """The float64 random model of this seed, with W + scale B A in the place of W."""
    changes = {}
    for name, down in found.items():
        at = name.removesuffix(".lora_A.weight")
        if at != name:
            up = found[f"{at}.lora_B.weight"]
            changes[at.removeprefix("base_model.model.")] = scale * up.double() @ down.double()
    return changed(architecture, seed, changes)


def changed(architecture: Architecture, seed: int, changes: Mapping[str, Tensor]) -> Decoder:
    """The float64 random model of this seed, with these differences added to its modules' weights."""
    weights = random_weights(architecture, seed, torch.float64)
    matrices = dict(weights.matrices)
    for module, site in sites(architecture, Llama.names).items():
        if module in changes:
            name = f"{site.product}.weight"
            weight_OI = matrices[name].weight_OI.clone()
            weight_OI[site.first : site.first + site.outputs] += changes[module]
            matrices[name] = PlainMatrix(weight_OI)
    return Decoder(architecture, Weights(matrices, weights.tensors, weights.dtype, weights.device))
