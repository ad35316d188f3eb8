"""From tensors as checkpoints have them to weights as the decoder runs them: stacked, and in their format.

    blocks.0.attention.{q,k,v}   -> blocks.0.attention.qkv      one product, one reading of the rows
    blocks.0.mlp.{gate,up}       -> blocks.0.mlp.gate_up        (and the same of every expert)

Where neurons may leave, gate stands alone, and up and down lie neuron by neuron (headrace/weight/neurons.py).

Matrices go through a format of the slot `weights`, a few rows at a time, so that a matrix never lies in memory in two
forms. Norms, biases and routers stay plain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.errors import ModelError
from headrace.weight import neurons
from headrace.weight.codes import Coded
from headrace.weight.formats import SLOT, Format
from headrace.weight.matrix import Matrix, Packing
from headrace.weight.memory import Take, taker
from headrace.weight.names import Shape, shapes
from headrace.weight.neurons import Neurons
from headrace.weight.store import InMemory, Store, half_of
from headrace.weight.tiers import SLOT as TIERS
from headrace.weight.tiers import Tier

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
    tier: Tier = field(default_factory=lambda: make_tier())
    store: Store = field(default_factory=lambda: InMemory(torch.device("cpu")))
    """Where the tier keeps the blocks' matrices."""

    @property
    def num_bytes(self) -> int:
        """In memory or not."""
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
    """Takes tensors block after block, within a block in any order, rows in any order, and gives the decoder's weights.

    What belongs to no block may come at any time.
    """

    def __init__(
        self,
        architecture: Architecture,
        form: Format,
        dtype: torch.dtype,
        device: torch.device | str,
        tier: Tier | None = None,
    ) -> None:
        """tier: where the blocks' matrices go (None: in memory). Raises ConfigError if that one does not suit them."""
        self._form, self._head = form, head_format(form)
        self._dtype, self._device = dtype, torch.device(device)
        self._places, self._shapes = places(architecture)
        self._packings: dict[str, Packing] = {}
        self._tensors: dict[str, Tensor] = {}
        self._matrices: dict[str, Matrix] = {}
        self._neurons = Neurons(architecture, self._form, dtype, self._taker)
        self._tier: Tier = tier or make_tier()
        self._left = [0] * (2 * len(architecture.blocks))
        """Rows of each half's matrices that have not been put."""
        for name, shape in shapes(architecture).items():
            half = half_of(name)
            if half is not None:
                self._left[half] += shape[0]
        self._store = self._tier.start(self._sizes(), self._device)

    def num_bytes(self) -> int:
        """Memory that the weights take, when they are there."""
        return sum(map(self._size, self._shapes)) - self._store.outside

    def put(self, name: str, first: int, rows: Tensor) -> None:
        """Rows first, first + 1, ... of the architecture's tensor `name`: floats of any dtype, or uint8 as a folder
        keeps codes (headrace/weight/codes.py). Copies them.

        Raises ModelError for values that the format cannot hold, and if there is no place for them.
        """
        if name in self._neurons:
            self._neurons.put(name, first, rows)
        else:
            self._put(self._places[name], first, rows)
        half = half_of(name)
        if half is not None:
            self._left[half] -= len(rows)
            if not self._left[half]:
                self._seal(half)

    def _put(self, place: Place, first: int, rows: Tensor) -> None:
        shape = self._shapes[place.name]
        if len(shape) == 1:
            if place.name not in self._tensors:
                self._tensors[place.name] = torch.empty(shape, dtype=self._dtype, device=self._device)
            self._tensors[place.name][place.first + first : place.first + first + len(rows)] = rows
            return
        if place.name not in self._packings:
            form, take = self.form_of(place.name), self._taker(place.name)
            self._packings[place.name] = form.start(shape[0], shape[1], self._dtype, take)
        packing: Any = self._packings[place.name]
        try:
            (packing.put_stored if rows.dtype is torch.uint8 else packing.put)(place.first + first, rows)
        except ValueError as error:
            raise ModelError(f"{place.name}: {error}") from None

    def finish(self) -> Weights:
        """Every tensor has been put."""
        self._finish(list(self._packings))
        tensors = self._tensors | self._neurons.finish()
        missing = set(self._shapes) - set(self._matrices) - set(tensors)
        assert not missing, f"nobody put {sorted(missing)[:3]}"
        assert not any(self._left), "rows of a block are missing"
        return Weights(self._matrices, tensors, self._dtype, self._device, self._tier, self._store)

    def _seal(self, half: int) -> None:
        """A half is whole."""
        self._finish([name for name in self._packings if half_of(name) == half])
        self._store.seal(half)

    def _finish(self, names: list[str]) -> None:
        self._matrices |= {name: self._packings.pop(name).finish() for name in names}

    def _taker(self, name: str) -> Take:
        half = half_of(name)
        return taker(self._device) if half is None else self._store.taker(half)

    def _sizes(self) -> list[list[int]]:
        """Bytes of each half's matrices."""
        sizes: list[list[int]] = [[] for _ in self._left]
        for name in self._shapes:
            half = half_of(name)
            if half is not None:
                sizes[half].append(self._size(name))
        return sizes

    def _size(self, name: str) -> int:
        """Bytes of a stacked weight."""
        shape = self._shapes[name]
        if name in self._neurons:
            return self._neurons.num_bytes(name)
        if len(shape) == 1:
            return shape[0] * self._dtype.itemsize
        return self.form_of(name).num_bytes(shape[0], shape[1], self._dtype)

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


def make_tier(spec: str = TIERS.default) -> Tier:
    """The tier that a spec describes. Raises ConfigError."""
    tier: Tier = TIERS.make(spec)
    return tier
