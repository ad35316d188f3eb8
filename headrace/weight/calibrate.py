"""A recipe on its way through a model: one piece in memory at a time, each kept on disk as soon as it is done.

    the ends    rewrite -> round to nearest -> keep -> look the calibration text up: hidden states of every text
    each block  rewrite -> run it, and see what its products read -> choose codes -> keep
                -> run it as it was kept: hidden states for the next block

Blocks are calibrated behind those that are rounded already, on what they will be given. A piece that is on disk is not
chosen again, only run; so a run that was ended goes on, and ends with the same bytes.

Shape suffixes beside those of headrace/types.py: S texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from headrace import __version__
from headrace.architecture import Architecture
from headrace.errors import ConfigError, ModelError
from headrace.weight import memory
from headrace.weight.assemble import Assembly, head_format
from headrace.weight.checkpoint import CHUNK, DTYPES, Entry, read_header
from headrace.weight.codes import Coded, store_nearest
from headrace.weight.formats import Format
from headrace.weight.load import check_floats
from headrace.weight.names import Names, Shape
from headrace.weight.piece import Piece, Seen, Tell, product_of
from headrace.weight.quantised import KEY, METHOD, Output
from headrace.weight.recipes import Recipe

Progress = Callable[[int, int], None]
"""Called with (texts run through blocks, of so many) as the run goes on."""


class Pass(Protocol):
    """A block that runs (headrace.forward.calibration)."""

    def __call__(self, x_TD: Tensor, tell: Tell | None = None) -> Tensor:
        """Hidden states of one text: before the block -> behind it."""
        ...


MakePass = Callable[[Architecture, int, Mapping[str, Tensor]], Pass]


@dataclass(frozen=True)
class Source:
    """A model folder, as its family describes it."""

    folder: Path
    config: Mapping[str, Any]
    """config.json."""
    architecture: Architecture
    names: Names

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Its tensors under the family's standard names, checked. Raises ModelError."""
        return check_floats(self.folder, self.architecture, self.names)

    def tensors(self, plan: Mapping[str, list[tuple[str, Shape]]]) -> Iterator[tuple[str, Tensor]]:
        """Our name and tensor, float32, of everything in a plan."""
        for source, parts in plan.items():
            first = 0
            for name, shape in parts:
                whole, row = torch.empty(shape), 0
                for rows in self.entries[source].chunks(first, shape[0]):
                    whole[row : row + len(rows)] = rows
                    row += len(rows)
                first += shape[0]
                if not torch.isfinite(whole).all():
                    raise ModelError(f"{self.folder}: {source} holds a NaN or an infinity; download it again")
                yield name, whole

    def digest(self) -> str:
        """Of config.json and of every weight's bytes."""
        found = hashlib.blake2b(repr(sorted(self.config.items())).encode(), digest_size=16)
        for name, entry in sorted(self.entries.items()):
            found.update(f"{name} {entry.dtype} {entry.shape}".encode())
            for rows in entry.chunks(0, entry.shape[0]):
                found.update(rows.contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class Target:
    """What is made of a model: a recipe for a format, with their specs."""

    recipe: Recipe
    form: Format
    recipe_spec: str
    weights_spec: str

    def plan(self, architecture: Architecture) -> Architecture:
        """What the model becomes. Raises ConfigError for a format without codes, or a model that cannot be."""
        if not isinstance(self.form, Coded):
            raise ConfigError(
                f"--weights {self.weights_spec} has no codes that a recipe could choose: name one that has, such as "
                "int4:group=128"
            )
        return self.recipe.plan(architecture)


@dataclass(frozen=True)
class Report:
    """What a run did."""

    pieces: int
    resumed: int
    """Pieces that were on disk already."""
    bytes_before: int
    bytes_after: int


def quantise(
    source: Source, how: Target, ids_ST: Tensor, out: Path, make_pass: MakePass, progress: Progress
) -> Report:
    """Writes the quantised folder `out`. ids_ST: the calibration texts, int64; not looked at by recipes without.

    Raises ConfigError for what cannot be, before anything is written where possible; ModelError for a damaged model.
    """
    run = _Run(source, how, ids_ST, out, make_pass, progress)
    run.require()
    return run.all()


class _Run:
    """One run; its state is the hidden states that the next block is given."""

    def __init__(
        self, source: Source, how: Target, ids_ST: Tensor, out: Path, make_pass: MakePass, progress: Progress
    ) -> None:
        self.source, self.how, self.ids_ST = source, how, ids_ST
        self.make_pass, self.progress = make_pass, progress
        self.becomes = how.plan(source.architecture)
        assert isinstance(how.form, Coded), "plan() has refused others"
        self.form: Coded = how.form
        self.layers = len(self.becomes.blocks)
        self.assembly = Assembly(self.becomes, how.form, torch.float32, "cpu")
        self.plan = source.names.plan(self.becomes)
        self.hidden_STD: Tensor | None = None
        self.done = 0
        self.entries = source.entries
        self.out = Output(out, self.layers + 1, self._claim())

    def require(self) -> None:
        """Raises ConfigError or ModelError if memory or disk do not suffice."""
        width, texts = self.becomes.width, self.ids_ST.numel() if self.how.recipe.calibrated else 0
        blocks = [self._floats(layer) for layer in range(self.layers)]
        moments = max(self._moments(layer) for layer in range(self.layers)) if texts else 0
        # a block as floats, stacked, rounded and in scratch; its moments, and the largest inverted in float64
        needed = max(4 * max(blocks) + moments, 2 * self._floats(None)) + 4 * texts * width + CHUNK
        memory.require(
            needed, "cpu", f"quantising {self.source.folder} with {texts} tokens of calibration text"
        )
        self.out.require(self._stored())

    def all(self) -> Report:
        resumed = 0
        for piece, layer in enumerate([None, *range(self.layers)]):
            file = self.out.file(piece)
            if file.exists():
                kept, resumed = self._load(file, layer), resumed + 1
                self._count(2)
            else:
                kept = self._make(layer)
                self.out.write(piece, kept)
            if self.how.recipe.calibrated and layer != self.layers - 1:
                self._advance(layer, kept)
        size = self.out.finish(self._config(), self.source.folder)
        before = sum(entry.size for name, entry in self.entries.items())
        return Report(self.layers + 1, resumed, before, size)

    # ---- a piece ----

    def _make(self, layer: int | None) -> dict[str, Tensor]:
        """A piece under the checkpoint's names, as it is kept."""
        at = _prefix(layer)
        plan = self._part(layer, self.source.names.plan(self.source.architecture))
        tensors = {name.removeprefix(at): t for name, t in self.source.tensors(plan)}
        piece = Piece(self.source.architecture, layer, tensors)
        self.how.recipe.rewrite(piece)
        if layer is None:
            stored = self._round_ends(piece)
        else:
            seen = self._observe(layer, piece) if self.how.recipe.calibrated else Seen()
            try:
                stored = self.how.recipe.choose(piece, seen, self.form)
            except ValueError as error:
                raise ModelError(f"{self.source.folder}: block {layer}: {error}") from None
            self._count(1)
        kept = {**piece.tensors, **stored}
        return {
            source: torch.cat([self._narrow(source, kept[name.removeprefix(at)]) for name, _ in parts])
            for source, parts in self._part(layer, self.plan).items()
        }

    def _round_ends(self, piece: Piece) -> dict[str, Tensor]:
        form = head_format(self.how.form)
        if not isinstance(form, Coded):
            return {}
        return {name: store_nearest(form, piece.tensors[name]) for name in piece.matrices()}

    def _narrow(self, source: str, tensor: Tensor) -> Tensor:
        """In the checkpoint's own dtype, if that loses nothing."""
        entry = self.entries.get(source)
        if entry is None or tensor.dtype is torch.uint8:
            return tensor
        narrow = tensor.to(DTYPES[entry.dtype])
        return narrow if torch.equal(narrow.float(), tensor) else tensor

    def _load(self, file: Path, layer: int | None) -> dict[str, Tensor]:
        """A piece that was kept. Raises ConfigError if it is another."""
        entries = {entry.name: entry for entry in read_header(file)}
        plan = self._part(layer, self.plan)
        if set(entries) != set(plan):
            raise ConfigError(f"{file} holds other tensors than this run writes: remove {file.parent}")
        return {
            name: torch.cat([rows.clone() for rows in entry.chunks(0, entry.shape[0])])
            for name, entry in entries.items()
        }

    def _values(self, layer: int | None, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What will run: floats under our names."""
        found = {}
        for source, parts in self._part(layer, self.plan).items():
            rows = kept[source].split([shape[0] for _, shape in parts])
            for (name, shape), part in zip(parts, rows, strict=True):
                form = self.assembly.form_of(name) if part.dtype is torch.uint8 else None
                values = form.values(part, shape[1]) if isinstance(form, Coded) else part.float()
                found[name.removeprefix(_prefix(layer))] = values
        return found

    # ---- the calibration text ----

    def _observe(self, layer: int, piece: Piece) -> Seen:
        """What the block's products read, of every text."""
        seen = Seen()
        for name in piece.matrices():  # also of experts that no row comes to
            seen.expect(name, piece.tensors[name])
        run = self.make_pass(self.becomes, layer, piece.tensors)
        assert self.hidden_STD is not None
        for x_TD in self.hidden_STD:
            run(x_TD, seen.tell)
            self._count(1 / len(self.hidden_STD))
        return seen

    def _advance(self, layer: int | None, kept: Mapping[str, Tensor]) -> None:
        """Hidden states behind this piece."""
        tensors = self._values(layer, kept)
        if layer is None:
            table = tensors["embed.weight"]
            self.hidden_STD = table[self.ids_ST].mul_(self.becomes.embedding_scale)
            return
        assert self.hidden_STD is not None
        run = self.make_pass(self.becomes, layer, tensors)
        for text in range(len(self.hidden_STD)):
            self.hidden_STD[text] = run(self.hidden_STD[text])
            self._count(1 / len(self.hidden_STD))

    # ---- sizes and names ----

    def _count(self, share: float) -> None:
        """Tells of a part of a block's three parts: seen, chosen, run."""
        self.done += round(share * 1000)
        total = 3000 * (self.layers + 1)
        self.progress(min(self.done, total), total)

    def _part(self, layer: int | None, plan: Mapping[str, Any]) -> dict[str, list[tuple[str, Shape]]]:
        """The plan of one piece."""
        at = _prefix(layer)
        return {
            source: parts
            for source, parts in plan.items()
            if (parts[0][0].startswith(at) if at else not parts[0][0].startswith("blocks."))
        }

    def _floats(self, layer: int | None) -> int:
        """Bytes of a piece as float32."""
        plan = self._part(layer, self.plan)
        return sum(
            4 * shape[0] * (shape[1] if len(shape) == 2 else 1) for p in plan.values() for _, shape in p
        )

    def _moments(self, layer: int) -> int:
        """Bytes of the second moments that a block's products need, and of three copies of the largest in float64."""
        widths = {
            product_of(name): shape[1]
            for parts in self._part(layer, self.plan).values()
            for name, shape in parts
            if len(shape) == 2
        }
        return sum(4 * width * width for width in widths.values()) + 24 * max(widths.values()) ** 2

    def _stored(self) -> int:
        """Bytes that are written, at most."""
        total = 0
        for parts in self.plan.values():
            for name, shape in parts:
                size = self.assembly.row_bytes(name, shape) or 4 * (shape[1] if len(shape) == 2 else 1)
                total += shape[0] * size
        return total

    def _claim(self) -> dict[str, str]:
        """All that decides the folder's bytes."""
        data = hashlib.blake2b(self.ids_ST.contiguous().numpy().tobytes(), digest_size=16).hexdigest()
        return {
            "headrace": __version__,
            "model": self.source.digest(),
            "recipe": repr(self.how.recipe),
            "weights": repr(self.how.form),
            "calibration text": f"{list(self.ids_ST.shape)} {data}" if self.how.recipe.calibrated else "none",
        }

    def _config(self) -> dict[str, Any]:
        note = {
            "quant_method": METHOD,
            "weights": self.how.weights_spec,
            "recipe": self.how.recipe_spec,
            "folds": self.how.recipe.folds,
            "version": 1,
        }
        config = {**self.source.config, KEY: note}
        if self.becomes.tied_head != self.source.architecture.tied_head:
            config["tie_word_embeddings"] = self.becomes.tied_head
        return config


def _prefix(layer: int | None) -> str:
    return "" if layer is None else f"blocks.{layer}."
