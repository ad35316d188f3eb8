"""Structured sparse fine-tuning: some inputs or outputs of a layer have weights of their own, kept as the difference.

Paper   https://arxiv.org/abs/2412.06289 (S2FT)
Idea    Train all the weights of a few heads and channels, and nothing else. What changed is a few columns of W (inputs
        of the attention's and the MLP's last layer) or a few rows (outputs of the others): one matrix, half of what a
        LoRA of as many ranks reads, and switching between two is a matter of bytes.
Trades  As LoRA: each step reads the differences of its rows.
Differs The paper permutes a model so that what is trained lies together; here indices stay the model's own, so that
        adapters with other choices share a batch. Nobody has published a folder format. Ours, in the place of PEFT's:

            adapter_config.json          {"peft_type": "S2FT", "slices": {MODULE: [[first, stop], ...], ...}}
            adapter_model.safetensors    MODULE.s2ft_in.weight [outputs, chosen]: columns of the difference, or
                                         MODULE.s2ft_out.weight [chosen, inputs]: rows of it

        Stacked products (query, key and value; gate and up) have chosen outputs in all their modules, or one module
        that has chosen inputs.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from headrace.errors import ModelError
from headrace.kernels.lora import num_bytes, pack_inputs, pack_outputs
from headrace.slots import Card
from headrace.weight.adapter import AdapterFiles, Site
from headrace.weight.low_rank import LowRank

_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.s2ft_(in|out)\.weight")
_KEYS = {"peft_type", "slices"}
_HARMLESS = {"base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"}


@dataclass(frozen=True, kw_only=True)
class S2ft:
    """Folders of peft_type S2FT."""

    card: ClassVar[Card] = Card(slot="adapter", exact="bits", paper="https://arxiv.org/abs/2412.06289")

    def open(
        self, files: AdapterFiles, sites: Mapping[str, Site], dtype: torch.dtype, device: torch.device
    ) -> OpenS2ft:
        """See the contract."""
        files.refuse_unknown(_KEYS | _HARMLESS)
        slices = files.config.get("slices")
        if not isinstance(slices, dict):
            files.refuse("slices must give each module's chosen inputs or outputs: [[first, stop], ...]")
        chosen = {files.standard(name.removeprefix(_PREFIX)): runs for name, runs in slices.items()}
        parts = [_part(files, name, chosen, sites) for name in files.entries]
        without = sorted(chosen.keys() - {part.module for part in parts})
        if without or len(chosen) < max(len(slices), 1):
            why = f"{without[0][:80]}, which has no tensor" if without else "no module, or one of them twice"
            files.refuse(f"slices names {why}")
        return OpenS2ft(files, _by_product(files, parts), dtype, device)


class _Part(NamedTuple):
    """What one module changes."""

    module: str
    tensor: str
    site: Site
    of_inputs: bool
    """Chosen inputs, not outputs."""
    indices_R: Tensor


class OpenS2ft:
    """A checked folder."""

    def __init__(
        self,
        files: AdapterFiles,
        products: Mapping[str, Sequence[_Part]],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._files, self._products, self._device = files, products, device
        self._dtype = files.kept_as(dtype)
        self.nbytes = sum(self._num_bytes(part) for parts in products.values() for part in parts)

    def load(self) -> Generator[int, None, Mapping[str, LowRank]]:
        """See the contract."""
        updates = {}
        for product, parts in self._products.items():
            read = []
            for part in parts:
                read.append(self._files.read(part.tensor).to(self._dtype))
                yield read[-1].nbytes
            if parts[0].of_inputs:
                site, indices_R = parts[0].site, parts[0].indices_R
                weight = pack_inputs(indices_R, read[0], site.first, site.inputs)
            else:
                weight = pack_outputs(
                    torch.cat([part.site.first + part.indices_R for part in parts]), torch.cat(read)
                )
            updates[product] = LowRank(weight.to(self._device))
        return updates

    def _num_bytes(self, part: _Part) -> int:
        ranks, site = len(part.indices_R), part.site
        shape = (0, [(ranks, site.outputs)]) if part.of_inputs else (site.inputs, [(ranks, 0)])
        return num_bytes(*shape, self._dtype.itemsize) + part.indices_R.nbytes


def _part(files: AdapterFiles, name: str, chosen: Mapping[str, Tensor], sites: Mapping[str, Site]) -> _Part:
    """The module that a tensor belongs to. Raises ModelError."""
    match = _TENSOR.fullmatch(name)
    if match is None:
        raise ModelError(f"{files.file}: {name} is not the difference of a linear layer's weights")
    module, of_inputs = files.standard(match[1]), match[2] == "in"
    files.check_module(name, module, sites)
    if module not in chosen:
        files.refuse(f"slices says nothing of {module}")
    site = sites[module]
    indices_R = _indices(files, module, chosen[module], site.inputs if of_inputs else site.outputs)
    shape = (site.outputs, len(indices_R)) if of_inputs else (len(indices_R), site.inputs)
    files.check_shape(name, shape, "this model and its slices")
    return _Part(module, name, site, of_inputs, indices_R)


def _by_product(files: AdapterFiles, parts: Sequence[_Part]) -> dict[str, list[_Part]]:
    """Parts of the same stacked product together, in the order of its outputs. Raises ModelError."""
    products: dict[str, list[_Part]] = {}
    for part in sorted(parts, key=lambda part: part.site.first):
        products.setdefault(part.site.product, []).append(part)
    for together in products.values():
        if len(together) > 1 and any(part.of_inputs for part in together):
            names = " and ".join(part.tensor for part in together[:2])
            raise ModelError(f"{files.file}: {names} change one stacked product, and not both its outputs")
        if len({part.module for part in together}) < len(together):
            raise ModelError(f"{files.file}: {together[0].module} has two tensors")
    return products


def _indices(files: AdapterFiles, module: str, runs: Any, limit: int) -> Tensor:
    """[[first, stop], ...] as int64 [R], rising, less than the limit. Raises ModelError."""
    end = 0
    for run in runs if isinstance(runs, list) else []:
        whole = isinstance(run, list) and [type(edge) for edge in run] == [int, int]
        if not whole or not end <= run[0] < run[1] <= limit:
            files.refuse(f"slices of {module}: {str(run)[:40]} is not [first, stop] in {end} to {limit}")
        end = run[1]
    if end == 0:
        files.refuse(f"slices of {module}: {str(runs)[:40]} is no list of [first, stop]")
    return torch.cat([torch.arange(first, stop) for first, stop in runs])
