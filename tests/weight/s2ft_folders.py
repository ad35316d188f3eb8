"""Folders of structured sparse differences, and the model that one is merged into."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from headrace.architecture import Architecture
from headrace.models.llama import Llama
from headrace.weight.adapter import sites

OF_INPUTS = ("o_proj", "down_proj")

Slices = dict[str, list[list[int]]]


def tensors(architecture: Architecture, seed: int) -> tuple[Slices, dict[str, Tensor]]:
    """Two runs of each module's inputs or outputs, random differences that change the output visibly."""
    random = torch.Generator().manual_seed(seed)
    slices, made = {}, {}
    for module, site in sites(architecture, Llama.names).items():
        of_inputs = module.endswith(OF_INPUTS)
        size = site.inputs if of_inputs else site.outputs
        slices[module] = [[0, 2], [size // 2, size // 2 + 3]]
        shape = (site.outputs, 5) if of_inputs else (5, site.inputs)
        name = f"base_model.model.{module}.s2ft_{'in' if of_inputs else 'out'}.weight"
        made[name] = 4 * torch.randn(*shape, generator=random) / math.sqrt(site.inputs)
    return slices, made


def write(folder: Path, architecture: Architecture, seed: int) -> Path:
    """A whole folder."""
    folder.mkdir(parents=True, exist_ok=True)
    slices, made = tensors(architecture, seed)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "S2FT", "slices": slices}))
    save_file(made, folder / "adapter_model.safetensors")
    return folder


def changes(architecture: Architecture, seed: int) -> dict[str, Tensor]:
    """The differences as whole matrices, by module."""
    slices, made = tensors(architecture, seed)
    found = {}
    for module, site in sites(architecture, Llama.names).items():
        whole_OI = torch.zeros(site.outputs, site.inputs, dtype=torch.float64)
        at = [i for first, stop in slices[module] for i in range(first, stop)]
        name = f"base_model.model.{module}.s2ft_"
        if f"{name}in.weight" in made:
            whole_OI[:, at] = made[f"{name}in.weight"].double()
        else:
            whole_OI[at] = made[f"{name}out.weight"].double()
        found[module] = whole_OI
    return found
