"""Low-rank adapters: y += scale * up (down x), in the folders that PEFT writes.

Paper   https://arxiv.org/abs/2106.09685 (LoRA), https://arxiv.org/abs/2304.01933 (LLM-Adapters)
Idea    A fine-tuned model differs from its base by products of two thin matrices per layer: kept apart, many models
        share one copy of the weights, and rows of different ones share a batch. rsLoRA (2312.03732) scales by the root
        of the rank.
Trades  Each step reads the adapters of its rows: some 2 r (inputs + outputs) numbers per product and adapter.
Differs Kept in bfloat16 if the file is, else in float32; never rounded. Refused: DoRA, biases, whole modules beside it,
        patterns of ranks, adapters of experts, of the embedding and of the head, and whatever else is not carried out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from headrace.errors import ModelError
from headrace.kernels.lora import num_bytes, pack
from headrace.slots import Card
from headrace.weight.adapter import AdapterFiles, Site
from headrace.weight.low_rank import LowRank

MAX_RANK = 64
MAX_SCALE = 1e4
_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(A|B)(?:\.default)?\.weight")
_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "init_lora_weights", "bias"}
_HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "megatron_config",
    "megatron_core", "peft_version", "qalora_group_size", "rank_pattern", "revision", "runtime_config", "task_type",
}  # fmt: skip
"""Keys that say how it was trained; which layers have which ranks, the tensors say."""
_REFUSED = {
    "use_dora": "DoRA also rescales the weights",
    "modules_to_save": "whole modules beside the adapter would have to replace the model's",
    "rank_pattern": "every layer must have the rank r",
    "alpha_pattern": "every layer must have the same lora_alpha",
    "lora_bias": "biases are not adapted",
    "fan_in_fan_out": "its matrices lie the other way round",
    "layer_replication": "the model's layers would have to be repeated",
    "trainable_token_indices": "it changes the embedding",
    "target_parameters": "only linear layers are adapted",
    "alora_invocation_tokens": "it would have to be switched on inside a prompt",
    "use_qalora": "its inputs are pooled in groups",
    "arrow_config": "it routes between adapters",
    "ensure_weight_tying": "it changes the embedding",
}
"""Keys that change what the adapter does, and why they must not be set."""
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base model as it is."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """PEFT's peft_type LORA."""

    card: ClassVar[Card] = Card(slot="adapter", exact="bits", paper="https://arxiv.org/abs/2106.09685")

    def open(
        self, files: AdapterFiles, sites: Mapping[str, Site], dtype: torch.dtype, device: torch.device
    ) -> OpenLora:
        """See the contract."""
        rank, scale = _read_config(files)
        pairs = _pairs(files)
        for module, pair in pairs.items():
            _check_pair(files, module, pair, sites, rank)
        targets = files.config.get("target_modules")
        for target in targets if isinstance(targets, list) else []:
            if not any(f".{module}".endswith(f".{target}") for module in pairs):
                files.refuse(
                    f"target_modules names {str(target)[:80]!r}, of which {files.file.name} has no tensor"
                )
        if not pairs:
            raise ModelError(f"{files.file} has no tensors: download it again")
        placed = [(pair, sites[module]) for module, pair in pairs.items()]
        return OpenLora(files, placed, rank, scale, dtype, device)


class OpenLora:
    """A checked folder."""

    def __init__(
        self,
        files: AdapterFiles,
        pairs: Sequence[tuple[Mapping[str, str], Site]],
        rank: int,
        scale: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._files, self._scale, self._device = files, scale, device
        self._dtype = files.kept_as(dtype)
        self._products: dict[str, list[tuple[Mapping[str, str], Site]]] = {}
        for pair, site in pairs:
            self._products.setdefault(site.product, []).append((pair, site))
        self.nbytes = sum(
            num_bytes(parts[0][1].inputs, [(rank, site.outputs) for _, site in parts], self._dtype.itemsize)
            for parts in self._products.values()
        )

    def load(self) -> Generator[int, None, Mapping[str, LowRank]]:
        """See the contract."""
        updates = {}
        for product, parts in self._products.items():
            read = []
            for pair, site in sorted(parts, key=lambda part: part[1].first):
                down, up = (self._files.read(pair[side]) for side in "AB")
                read.append((down.to(self._dtype), up.to(self._dtype), self._scale, site.first))
                yield down.nbytes + up.nbytes
            updates[product] = LowRank(pack(read).to(self._device))
        return updates


def _read_config(files: AdapterFiles) -> tuple[int, float]:
    """Rank and scale. Raises ModelError for a key that would not be carried out."""
    config = files.config
    for key, value in config.items():
        if key in _REFUSED and value:
            files.refuse(f"{key} is not supported: {_REFUSED[key]}")
    files.refuse_unknown(_READ | _HARMLESS | _REFUSED.keys())
    if config.get("bias", "none") != "none":
        files.refuse("bias is not supported: biases are not adapted")
    start = config.get("init_lora_weights")
    if not any(start is plain or start == plain for plain in _PLAIN_STARTS):
        files.refuse(
            f"init_lora_weights={str(start)[:40]!r} changes the base model: have PEFT convert it to plain LoRA when it "
            "saves (path_initial_model_for_weight_conversion)"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha", 8)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        files.refuse(f"r={str(rank)[:40]} must be a rank between 1 and {MAX_RANK}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= MAX_SCALE:
        files.refuse(f"lora_alpha={str(alpha)[:40]} must be a number of at most {MAX_SCALE:g}")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") is True else rank)


def _pairs(files: AdapterFiles) -> dict[str, dict[str, str]]:
    """Module -> {"A": tensor, "B": tensor}."""
    found: dict[str, dict[str, str]] = {}
    for name in files.entries:
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise ModelError(f"{files.file}: {name} is not a LoRA matrix of a linear layer")
        pair = found.setdefault(files.standard(match[1]), {})
        if match[2] in pair:
            raise ModelError(f"{files.file}: {name} and {pair[match[2]]} are the same matrix")
        pair[match[2]] = name
    return found


def _check_pair(
    files: AdapterFiles, module: str, pair: Mapping[str, str], sites: Mapping[str, Site], rank: int
) -> None:
    one = next(iter(pair.values()))
    files.check_module(one, module, sites)
    if len(pair) < 2:
        raise ModelError(f"{files.file}: {one} has no matrix lora_{'B' if 'A' in pair else 'A'} beside it")
    site = sites[module]
    for side, shape in (("A", (rank, site.inputs)), ("B", (site.outputs, rank))):
        files.check_shape(pair[side], shape, f"this model and r={rank}")
