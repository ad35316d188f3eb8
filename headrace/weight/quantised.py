"""Quantised folders: a Hugging Face layout whose matrices are codes, and a note in config.json that says which.

    config.json                     the model's own, and quantization_config: Note
    model-00001-of-00018.safetensors  the ends; then a file per block
    X.weight   uint8 [O, B]         a matrix: per output the bytes that its format keeps (headrace/weight/codes.py)
    others     as the model has them, or float32 where a recipe changed them

While it is written, unfinished.json stands for config.json and says of what; whatever is there under its final name is
whole. So a run that was ended anyhow goes on where it was, and a folder of another run is not taken for its own.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import safetensors.torch
from torch import Tensor

from headrace.errors import ConfigError, ModelError
from headrace.weight.checkpoint import INDEX, MAX_NAME, read_header
from headrace.weight.config import read_json

KEY, METHOD = "quantization_config", "headrace"
CONFIG, UNFINISHED = "config.json", "unfinished.json"
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.*",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
"""What is copied beside the weights; a model's card tells of other weights."""


class Note(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What config.json says of a quantised folder."""

    quant_method: Literal["headrace"]
    weights: str
    """Spec of the format, slot `weights`."""
    recipe: str
    """Spec of the recipe, slot `recipe`."""
    folds: bool
    """Whether products read something else than the model's own did, so that no adapter fits them."""
    version: int = 1


def take_note(config: dict[str, Any], file: Path) -> Note | None:
    """Removes the note of a folder of ours from its config; None if it is none. Raises ModelError for a bad one."""
    given = config.get(KEY)
    if not isinstance(given, dict) or given.get("quant_method") != METHOD:
        return None
    try:
        note = msgspec.convert(config.pop(KEY), Note)
    except msgspec.ValidationError as error:
        raise ModelError(f"{file}: {KEY}: {error}: quantise the model again") from None
    if note.version != 1:
        raise ModelError(f"{file}: {KEY}: version={note.version} is not known here: use a newer headrace")
    return note


class Output:
    """A folder that is being written, file by file. Every error is a ConfigError of one line."""

    def __init__(self, folder: Path, pieces: int, claim: Mapping[str, str]) -> None:
        """claim: what decides the bytes of the folder. Raises ConfigError if there is anything else in it."""
        self.folder, self._pieces = folder, pieces
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = [path.name for path in folder.iterdir()]
        except OSError as error:
            raise ConfigError(f"--out={folder}: cannot make the folder: {error.strerror}") from None
        if UNFINISHED in found:
            self._check_claim(claim)
        elif set(found) - {f"{UNFINISHED}.part"}:
            raise ConfigError(f"--out={folder}: the folder is not empty ({sorted(found)[0]}): name another")
        else:
            self._put(UNFINISHED, json.dumps(dict(claim), indent=1).encode())

    def file(self, piece: int) -> Path:
        """Of one piece; it is whole if it exists."""
        return self.folder / f"model-{piece + 1:05d}-of-{self._pieces:05d}.safetensors"

    def require(self, size: int) -> None:
        """Raises ConfigError if the disk has not so many bytes left."""
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise ConfigError(
                f"--out={self.folder}: needs {size / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free on that disk"
            )

    def write(self, piece: int, tensors: Mapping[str, Tensor]) -> None:
        """One piece, whole or not at all."""
        data = safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()}, {"format": "pt"})
        self._put(self.file(piece).name, data)

    def finish(self, config: Mapping[str, Any], companions: Path) -> int:
        """Every piece is there: index, tokenizer and config. Returns the bytes of all files with weights."""
        files = [self.file(piece) for piece in range(self._pieces)]
        entries = [entry for file in files for entry in read_header(file)]
        index = {
            "metadata": {"total_size": sum(entry.size for entry in entries)},
            "weight_map": {entry.name: entry.file.name for entry in entries},
        }
        self._put(INDEX, json.dumps(index, indent=1).encode())
        for pattern in COMPANIONS:
            for path in sorted(companions.glob(pattern)):
                if path.is_file():
                    self._put(path.name, path.read_bytes())
        self._put(CONFIG, (json.dumps(config, indent=2) + "\n").encode())
        (self.folder / UNFINISHED).unlink()
        return sum(file.stat().st_size for file in files)

    def _put(self, name: str, data: bytes) -> None:
        """Under another name first: a file that is cut short never has its own."""
        part = self.folder / f"{name}.part"
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.folder / name)
        except OSError as error:
            raise ConfigError(
                f"cannot write {self.folder / name}: {error.strerror}; run the same command again to go on from here"
            ) from None

    def _check_claim(self, claim: Mapping[str, str]) -> None:
        try:
            found = read_json(self.folder / UNFINISHED)
        except ModelError as error:
            raise ConfigError(f"--out={self.folder}: {error}; or remove the folder") from None
        other = [key for key, value in claim.items() if found.get(key) != value]
        if other:
            was = str(found.get(other[0]))[:MAX_NAME]
            raise ConfigError(
                f"--out={self.folder}: the folder has an unfinished run with another {other[0]} ({was}, now "
                f"{claim[other[0]]}): remove it, or name another folder"
            )
