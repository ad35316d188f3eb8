"""Safetensors files: which tensors are where, checked against the files' sizes before a byte of them is read.

    [ header length, 8 bytes ][ header, JSON: name -> dtype, shape, data_offsets ][ data, no gaps, no overlaps ]

Pickled weights (.bin, .pt) are never opened: unpickling runs code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from headrace.errors import ModelError
from headrace.weight.config import read_json

MAX_HEADER = 100_000_000
"""Largest header, bytes: the format's own limit."""
MAX_AXES = 8
MAX_NAME = 256
CHUNK = 4 << 20
"""Bytes read at a time (one row if that is more): all that loading needs beside the weights themselves."""
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""What weights may be stored as."""
CODES = "U8"
"""What codes are stored as."""
_ITEM_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64}
_ITEM_BITS |= {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "C64": 64, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
_ITEM_BITS |= {name: dtype.itemsize * 8 for name, dtype in DTYPES.items()}

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """One tensor in one file."""

    file: Path
    name: str
    dtype: str
    """As the header spells it; a key of DTYPES, or CODES, if it can be loaded."""
    shape: tuple[int, ...]
    start: int
    """First byte, from the beginning of the file."""
    size: int
    """Bytes."""

    def chunks(self, first_row: int, rows: int, room: bytearray | None = None) -> Iterator[Tensor]:
        """These rows (of the first axis), some at a time: about CHUNK bytes, gone once the next are asked for.

        room: CHUNK bytes to read into, one buffer for tensor after tensor. Raises ModelError if the file is shorter
        than its header says or cannot be read.
        """
        row_size = self.size // self.shape[0] if self.shape else self.size
        at_once = max(1, min(rows, CHUNK // max(row_size, 1)))
        scratch = room if room and len(room) >= at_once * row_size else bytearray(at_once * row_size)
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.start + first_row * row_size)
                while rows > 0 and row_size:
                    count = min(at_once, rows)
                    view = memoryview(scratch)[: count * row_size]
                    _fill(file, view)
                    flat = torch.frombuffer(view, dtype=torch.uint8)
                    flat = flat if self.dtype == CODES else flat.view(DTYPES[self.dtype])
                    yield flat.view(count, *self.shape[1:])
                    rows -= count
        except OSError as error:
            raise ModelError(f"cannot read {self.name} from {self.file}: {error.strerror or error}") from None


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def find_tensors(folder: Path) -> dict[str, Entry]:
    """Every tensor of a model folder, from one file or from the shards that its index lists. Raises ModelError."""
    if (folder / SINGLE).exists():
        return {entry.name: entry for entry in read_header(folder / SINGLE)}
    if not (folder / INDEX).exists():
        raise ModelError(_no_weights(folder))
    index = read_json(folder / INDEX).get("weight_map")
    if (
        not index
        or not isinstance(index, dict)
        or not all(isinstance(shard, str) for shard in index.values())
    ):
        raise ModelError(f"{folder / INDEX} has no weight_map from tensors to files: download it again")
    found: dict[str, Entry] = {}
    for shard in sorted(set(index.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelError(
                f"{folder / INDEX} names {shard!r}, which is not a safetensors file in the same folder"
            )
        if not (folder / shard).exists():
            raise ModelError(f"{folder / shard} is missing, but {INDEX} lists it: download it again")
        for entry in read_header(folder / shard):
            if entry.name in found:
                raise ModelError(
                    f"{entry.name} is in both {found[entry.name].file} and {entry.file}: remove one"
                )
            found[entry.name] = entry
    for name, shard in index.items():
        if name not in found or found[name].file.name != shard:
            raise ModelError(
                f"{folder / INDEX} says that {name} is in {shard}, but it is not: download both again"
            )
    return found


def read_header(file: Path) -> list[Entry]:
    """The tensors of one safetensors file, in the order of their data. Raises ModelError if anything does not fit."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > MAX_HEADER or 8 + length > size:
                raise ModelError(
                    f"{file} has {size} bytes, less than its header says: truncated; download it again"
                )
            header = msgspec.json.decode(stream.read(length), type=dict[str, msgspec.Raw])
        header.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(raw, type=_Header) for name, raw in header.items()}
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{file} is not a safetensors file: its header is corrupt ({error})") from None
    return list(_checked(file, entries, 8 + length, size))


def _checked(file: Path, entries: Mapping[str, _Header], data: int, size: int) -> Iterator[Entry]:
    """Entries whose bytes follow each other from `data` to the end of the file, as many as their shapes need."""
    expected = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        start, stop = entry.data_offsets
        if len(name) > MAX_NAME or not name.isprintable():
            raise ModelError(f"{file} is not a model: it has a tensor called {name[:MAX_NAME]!r}")
        if len(entry.shape) > MAX_AXES or any(not 0 <= count < 1 << 40 for count in entry.shape):
            raise ModelError(
                f"{file}: {name} has the impossible shape {entry.shape[:MAX_AXES]}; download it again"
            )
        if entry.dtype not in _ITEM_BITS:
            raise ModelError(f"{file}: {name} has the unknown dtype {entry.dtype!r}")
        if start != expected or (stop - start) * 8 != math.prod(entry.shape) * _ITEM_BITS[entry.dtype]:
            raise ModelError(
                f"{file}: the bytes [{start}, {stop}) of {name} do not fit; corrupt, download it again"
            )
        expected = stop
        yield Entry(file, name, entry.dtype, tuple(entry.shape), data + start, stop - start)
    if data + expected != size:
        raise ModelError(
            f"{file} has {size} bytes, but its header describes {data + expected}: truncated or corrupt; "
            "download it again"
        )


def _fill(file: FileIO, view: memoryview) -> None:
    """Reads until `view` is full; a raw read may stop early."""
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise OSError("the file became shorter while it was read")
        done += count


def _no_weights(folder: Path) -> str:
    pickles = sorted(
        path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")
    )
    if pickles:
        return (
            f"{folder} has only pickled weights ({pickles[0]}), which can run code when opened: convert to "
            "safetensors: load the folder in transformers and call save_pretrained"
        )
    return f"{folder} has neither {SINGLE} nor {INDEX}: download the weights"
