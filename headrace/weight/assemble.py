"""From tensors as checkpoints have them to weights as the decoder runs them: stacked, and in their format.

    blocks.0.attention.{q,k,v}   -> blocks.0.attention.qkv      one product, one reading of the rows
    blocks.0.mlp.{gate,up}       -> blocks.0.mlp.gate_up        (and the same of every expert)

Where neurons may leave, gate stands alone, and up and down lie neuron by neuron (headrace/weight/neurons.py).

Matrices go through a format of the slot `weights`, a few rows at a time, so that a matrix never lies in memory in two
forms. Norms, biases and routers stay plain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.errors import ModelError
from headrace.weight import neurons
from headrace.weight.codes import Coded
from headrace.weight.formats import SLOT, Format
from headrace.weight.matrix import Matrix, Packing
from headrace.weight.names import Shape, shapes
from headrace.weight.neurons import Neurons

STACKS: Mapping[str, tuple[str, ...]] = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
"""Ours -> whose rows it has, first rows first."""
_STACK_OF = {part: whole for whole, parts in STACKS.items() for part in parts}


def stack_of(module: str) -> str:
    """The stack that a module's rows go to, or the module itself."""
    return _STACK_OF.get(module, module)


@dataclass(frozen=True)
class Weights:
    """All of a decoder's weights, stacked: names end in .weight or .bias."""

    matrices: Mapping[str, Matrix]
    tensors: Mapping[str, Tensor]
    """Norms and biases; of MLPs whose neurons may leave also up and down, [F, D] each."""
    dtype: torch.dtype
    """Of the arithmetic around the matrices."""
    device: torch.device

    @property
    def num_bytes(self) -> int:
        matrices = sum(matrix.nbytes for matrix in self.matrices.values())
        return matrices + sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True)
class Place:
    """Where one of the architecture's tensors goes."""

    name: str
    """Of the stacked weight."""
    first: int
    """Row."""


def places(architecture: Architecture) -> tuple[dict[str, Place], dict[str, Shape]]:
    """Tensor name -> place, and the stacked weights' shapes."""
    sizes, found, apart = shapes(architecture), {}, neurons.parts(architecture)
    stacked: dict[str, Shape] = {}
    for name, shape in sizes.items():
        *path, module, leaf = name.split(".")
        alone = f"{'.'.join(path)}.up.weight" in apart
        target = ".".join((*path, module if alone else stack_of(module), leaf))
        rows = stacked.get(target, (0,))[0]
        found[name] = Place(target, rows)
        stacked[target] = (rows + shape[0], *shape[1:])
    return found, stacked


class Assembly:
    """Takes tensors in any order, rows in any order, and gives the decoder's weights."""

    def __init__(
        self, architecture: Architecture, form: Format, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self._architecture = architecture
        self._form, self._head = form, head_format(form)
        self._dtype, self._device = dtype, torch.device(device)
        self._places, self._shapes = places(architecture)
        self._packings: dict[str, Packing] = {}
        self._tensors: dict[str, Tensor] = {}
        self._neurons = Neurons(architecture, self._form, dtype, self._device)

    def num_bytes(self) -> int:
        """Of all weights, when they are there."""
        return self._neurons.num_bytes() + sum(
            self.form_of(name).num_bytes(shape[0], shape[1], self._dtype)
            if len(shape) == 2
            else shape[0] * self._dtype.itemsize
            for name, shape in self._shapes.items()
            if name not in self._neurons
        )

    def put(self, name: str, first: int, rows: Tensor) -> None:
        """Rows first, first + 1, ... of the architecture's tensor `name`: floats of any dtype, or uint8 as a folder
        keeps codes (headrace/weight/codes.py). Copies them.

        Raises ModelError for values that the format cannot hold.
        """
        place = self._places[name]
        shape = self._shapes[place.name]
        if name in self._neurons:
            return self._neurons.put(name, first, rows)
        if len(shape) == 1:
            if place.name not in self._tensors:
                self._tensors[place.name] = torch.empty(shape, dtype=self._dtype, device=self._device)
            self._tensors[place.name][place.first + first : place.first + first + len(rows)] = rows
            return
        if place.name not in self._packings:
            form = self.form_of(place.name)
            self._packings[place.name] = form.start(shape[0], shape[1], self._dtype, self._device)
        packing: Any = self._packings[place.name]
        try:
            (packing.put_stored if rows.dtype is torch.uint8 else packing.put)(place.first + first, rows)
        except ValueError as error:
            raise ModelError(f"{place.name}: {error}") from None

    def finish(self) -> Weights:
        """Every tensor has been put."""
        tensors = self._tensors | self._neurons.finish()
        missing = set(self._shapes) - set(self._packings) - set(tensors)
        assert not missing, f"nobody put {sorted(missing)[:3]}"
        matrices = {name: packing.finish() for name, packing in self._packings.items()}
        return Weights(matrices, tensors, self._dtype, self._device)

    def row_bytes(self, name: str, shape: Shape) -> int | None:
        """Bytes per output of a tensor whose codes a folder may keep; None for others."""
        if len(shape) != 2:
            return None
        form = self.form_of(name)
        return form.row_bytes(shape[1]) if isinstance(form, Coded) else None

    def form_of(self, name: str) -> Format:
        """The format of a matrix."""
        module = name.split(".")[-2]
        if module == "router":
            return make("plain")  # small, and a wrong expert costs more than a rounded one
        return self._head if module in ("embed", "head") else self._form


def head_format(form: Format) -> Format:
    """The format of embedding and head. Raises ConfigError for a spec that does not exist."""
    return make(form.head) if form.head else form


def make(spec: str = SLOT.default) -> Format:
    """The format that a spec describes. Raises ConfigError."""
    form: Format = SLOT.make(spec)
    return form
