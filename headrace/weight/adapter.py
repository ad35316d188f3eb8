"""Adapters: what holds them, what they may change in a model, and which rows of a batch they run with.

    adapter_config.json, adapter_model.safetensors -> AdapterFiles -> a kind of the slot `adapter` -> updates by site

A site is one of a model's products under the name that checkpoints have for it; several may be one stacked product here
(query, key and value), of which each changes its own outputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.errors import ModelError
from headrace.kernels.before import Before
from headrace.weight import neurons
from headrace.weight.adapters import SLOT, Kind, Opened, Update
from headrace.weight.assemble import places
from headrace.weight.checkpoint import DTYPES, Entry, read_header
from headrace.weight.config import read_json
from headrace.weight.names import Names

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MAX_CONFIG = 1 << 20
"""Largest adapter_config.json, bytes."""
MAX_TENSOR = 1 << 28
"""Largest tensor, bytes."""


@dataclass(frozen=True)
class Site:
    """A product that may be adapted."""

    product: str
    """The stacked product that it is part of."""
    first: int
    """Its first output there."""
    outputs: int
    inputs: int


def sites(architecture: Architecture, names: Names) -> dict[str, Site]:
    """Checkpoint's name of a module -> its site: attention and MLP, without experts, routers, embedding and head, and
    without products of which some neurons leave."""
    placed, single = places(architecture)[0], neurons.parts(architecture)
    found = {}
    for source, parts in names.plan(architecture).items():
        name, shape = parts[0]
        module, _, leaf = name.rpartition(".")
        apart = any(f".{part}." in f"{name}." for part in ("router", "experts"))
        apart = apart or any(part in single for part, _ in parts)
        if leaf != "weight" or len(shape) != 2 or not name.startswith("blocks.") or apart:
            continue
        place = placed[name]
        outputs = sum(shape[0] for _, shape in parts)
        found[source.removesuffix(".weight")] = Site(
            place.name.removesuffix(".weight"), place.first, outputs, shape[1]
        )
    return found


class AdapterFiles:
    """A PEFT folder: its configuration, and its tensors as they are read. Nothing else in it is opened."""

    def __init__(self, folder: Path, names: Names) -> None:
        """Reads the configuration and the tensors' header. Raises ModelError."""
        self.folder, self._names = folder, names
        self.config_file = folder / CONFIG
        self.file = folder / WEIGHTS
        try:
            for file in (self.config_file, self.file):
                if not file.is_file():
                    raise ModelError(self._missing(file))
            size = self.config_file.stat().st_size
        except OSError as error:
            raise ModelError(f"cannot read {folder}: {error.strerror}") from None
        if size > MAX_CONFIG:
            raise ModelError(f"{self.config_file} is larger than {MAX_CONFIG} bytes: not an adapter's")
        self.config: dict[str, Any] = read_json(self.config_file)
        self.entries: dict[str, Entry] = {entry.name: entry for entry in read_header(self.file)}
        for entry in self.entries.values():
            if entry.dtype not in DTYPES:
                raise ModelError(
                    f"{self.file}: {entry.name} is stored as {entry.dtype}, not as one of {', '.join(DTYPES)}"
                )
            if entry.size > MAX_TENSOR:
                raise ModelError(f"{self.file}: {entry.name} has {entry.size} bytes; at most {MAX_TENSOR}")
        self._hash = hashlib.blake2b(repr(sorted(self.config.items())).encode(), digest_size=16)

    def standard(self, module: str) -> str:
        """A module's name as the family's checkpoints have it."""
        return self._names.standard(f"{module}.weight").removesuffix(".weight")

    def read(self, name: str) -> Tensor:
        """A whole tensor, in the dtype of the file. Raises ModelError if it cannot be read, or is not finite."""
        entry = self.entries[name]
        out = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        self._hash.update(f"{name} {entry.dtype} {entry.shape}".encode())
        row = 0
        for rows in entry.chunks(0, entry.shape[0]):
            self._hash.update(rows.view(torch.uint8).numpy().tobytes())
            out[row : row + len(rows)] = rows
            row += len(rows)
        if not out.isfinite().all():
            raise ModelError(f"{self.file}: {name} holds a NaN or an infinity; download it again")
        return out

    def refuse(self, why: str) -> NoReturn:
        """Raises ModelError: the configuration cannot be carried out."""
        raise ModelError(f"{self.config_file}: {why}")

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Raises ModelError if a key that is set is not one of these."""
        for key, value in self.config.items():
            if key not in known and value:
                self.refuse(f"unknown key {key[:80]!r}, which may change what the adapter does")

    def check_module(self, name: str, module: str, known: Mapping[str, Site]) -> None:
        """Raises ModelError if the module that a tensor changes is none of the model's."""
        if module not in known:
            raise ModelError(
                f"{self.file}: {name} adapts {module}, which is none of this model's linear layers in attention and "
                "MLP"
            )

    def check_shape(self, name: str, shape: tuple[int, ...], who: str) -> None:
        """Raises ModelError if a tensor has another shape than `who` ask for."""
        found = self.entries[name].shape
        if found != shape:
            raise ModelError(
                f"{self.file}: {name} has shape {list(found)}, but {who} ask for {list(shape)}: is the adapter from "
                "the same model?"
            )

    def kept_as(self, dtype: torch.dtype) -> torch.dtype:
        """What a low-rank update's numbers are kept in beside a model of this dtype: bfloat16 if all of them are stored
        so, else float32, or float64 beside float64."""
        if dtype == torch.float64:
            return dtype
        stored = {DTYPES[entry.dtype] for entry in self.entries.values()}
        return torch.bfloat16 if stored == {torch.bfloat16} else torch.float32

    def digest(self) -> str:
        """Of the configuration and of every tensor that was read, in the order of reading."""
        return self._hash.hexdigest()

    def _missing(self, file: Path) -> str:
        if file.name == WEIGHTS and (self.folder / PICKLE).exists():
            return (
                f"{self.folder} has only pickled weights ({PICKLE}), which can run code when opened: load it in PEFT "
                "and call save_pretrained, which writes safetensors"
            )
        return (
            f"{self.folder} has no file {file.name}: an adapter is a PEFT folder with {CONFIG} and {WEIGHTS}"
        )


def open_adapter(
    files: AdapterFiles, known: Mapping[str, Site], dtype: torch.dtype, device: torch.device
) -> Opened:
    """The folder, checked by the kind that it names. Raises ModelError."""
    named = files.config.get("peft_type")
    if not isinstance(named, str) or named.lower() not in SLOT.index:
        raise ModelError(
            f"{files.config_file}: peft_type {str(named)[:40]!r} is not supported; known: "
            f"{', '.join(name.upper() for name in SLOT.index)}"
        )
    kind: Kind = SLOT.load(named.lower())()
    return kind.open(files, known, dtype, device)


@dataclass(eq=False)
class Adapter:
    """One adapter as sequences hold it: its numbers come and go (headrace/forward/adapters.py)."""

    name: str
    folder: Path
    nbytes: int
    """Memory that its updates take."""
    updates: Mapping[str, Update] | None = None
    """By product; None while they are not in memory."""
    digest: str = ""
    """Of what it held when it was first loaded; part of the prefix cache's key."""
    crowded: bool = False
    """It does not fit beside the adapters of the sequences that run."""
    error: str = ""
    """Why it could not be loaded."""

    @property
    def ready(self) -> bool:
        """Whether its sequences may run."""
        return self.updates is not None and not self.crowded


class Mix:
    """Which rows of a batch run with which adapter. No row has two; rows of the base model are in none."""

    def __init__(self, groups: Sequence[tuple[Adapter, Sequence[int]]]) -> None:
        self._groups = groups

    @cached_property
    def _rows(self) -> list[Tensor]:
        return [torch.tensor(rows, dtype=torch.int64) for _, rows in self._groups]

    @property
    def key(self) -> tuple[tuple[Adapter, tuple[int, ...]], ...]:
        """Equal for batches of which the same rows run with the same adapters."""
        return tuple((adapter, tuple(rows)) for adapter, rows in self._groups)

    def settle(self) -> None:
        """Makes the tensors that add() needs now, where it would make them in its first call."""
        assert len(self._rows) == len(self._groups)

    def within(self, first: int, stop: int) -> Mix | None:
        """The same for rows first to stop alone, counted from there; None if no adapter has one of them."""
        groups = [(a, [row - first for row in rows if first <= row < stop]) for a, rows in self._groups]
        return Mix([group for group in groups if group[1]]) if any(rows for _, rows in groups) else None

    def of(self, rows: Sequence[int]) -> Mix | None:
        """The same for these rows alone, counted in their order; None if no adapter has one of them."""
        at = {row: place for place, row in enumerate(rows)}
        groups = [(adapter, [at[row] for row in own if row in at]) for adapter, own in self._groups]
        return Mix([group for group in groups if group[1]]) if any(own for _, own in groups) else None

    def add(self, product: str, out_TO: Tensor, x: Tensor, before: Before) -> None:
        """Adds to a product's result what the adapters do to it, kind by kind."""
        kinds: dict[type[Update], list[tuple[Tensor, Update]]] = {}
        for (adapter, _), rows_A in zip(self._groups, self._rows, strict=True):
            assert adapter.updates is not None, f"adapter {adapter.name} runs without being loaded"
            update = adapter.updates.get(product)
            if update is not None:
                kinds.setdefault(type(update), []).append((rows_A.to(x.device), update))
        for kind, updates in kinds.items():
            kind.add(out_TO, x, before, updates)
