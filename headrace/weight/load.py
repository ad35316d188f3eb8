"""Streams a checkpoint into tensors under our own names. Peak memory: the weights, and one chunk of a file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from headrace.architecture import Architecture
from headrace.errors import ModelError
from headrace.weight import memory
from headrace.weight.assemble import Assembly, Weights, make
from headrace.weight.checkpoint import CHUNK, CODES, DTYPES, Entry, find_tensors
from headrace.weight.formats import Format
from headrace.weight.names import Names, Shape
from headrace.weight.store import half_of
from headrace.weight.tiers import Tier

Progress = Callable[[int, int], None]
"""Called with (bytes read and packed, bytes in all) as loading goes on."""
Plan = Mapping[str, list[tuple[str, Shape]]]

WEIGHT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def read_weights(
    folder: Path,
    architecture: Architecture,
    names: Names,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    *,
    form: Format | None = None,
    stored: bool = False,
    tier: Tier | None = None,
) -> Weights:
    """The decoder's weights: matrices in `form` (None: plain), the rest as `dtype`, on `device`.

    stored: the folder keeps codes of `form` (headrace/weight/quantised.py), not floats. tier: where the blocks'
    matrices go (None: in memory).

    Headers are read and checked first, then memory is, then tensor after tensor is read; nothing is mapped and nothing
    is kept twice. Raises ModelError for files that are missing or damaged, tensors that are missing, left over, of the
    wrong shape or of a dtype that is not a plain float, and for too little memory. Raises ConfigError for a tier that
    does not suit the model.
    """
    check_dtype(dtype)
    found = _rename(find_tensors(folder), names)
    plan = names.plan(architecture)
    assembly = Assembly(architecture, form or make(), dtype, device, tier)
    _check_wanted(folder, plan, found, assembly if stored else None)
    _check_extra(folder, plan, found, names, architecture.tied_head)
    memory.require(assembly.num_bytes() + CHUNK, device, f"{folder} as {dtype}")
    total, done, room = sum(found[source].size for source in plan), 0, bytearray(CHUNK)
    for source in _order(plan, found):
        first_row = 0
        for name, shape in plan[source]:
            row = 0
            for rows in found[source].chunks(first_row, shape[0], room):
                assembly.put(name, row, rows)
                row, done = row + len(rows), done + rows.nbytes
                if progress is not None:
                    progress(done, total)
            first_row += shape[0]
    return assembly.finish()


def _order(plan: Plan, found: Mapping[str, Entry]) -> list[str]:
    """Block after block, as tiers want them; within a block as they lie in the files, so that a disk reads forward."""

    def key(source: str) -> tuple[int, str, int]:
        half = max(-1 if half is None else half for half in map(half_of, (name for name, _ in plan[source])))
        return half // 2, found[source].file.name, found[source].start

    return sorted(plan, key=key)


def check_floats(folder: Path, architecture: Architecture, names: Names) -> dict[str, Entry]:
    """The folder's tensors under the family's standard names, all that the architecture wants and all floats.

    Raises ModelError.
    """
    found, plan = _rename(find_tensors(folder), names), names.plan(architecture)
    _check_wanted(folder, plan, found, None)
    _check_extra(folder, plan, found, names, architecture.tied_head)
    return {source: found[source] for source in plan}


def check_dtype(dtype: torch.dtype) -> None:
    """Raises ModelError unless the decoder can compute in it."""
    if dtype not in WEIGHT_DTYPES:
        raise ModelError(
            f"weights cannot be {dtype}; known: {', '.join(str(known) for known in WEIGHT_DTYPES)}"
        )


def _rename(entries: Mapping[str, Entry], names: Names) -> dict[str, Entry]:
    """Entries under the family's standard names."""
    found: dict[str, Entry] = {}
    for name, entry in entries.items():
        standard = names.standard(name)
        if standard in found:
            raise ModelError(
                f"{entry.file}: {name} and {found[standard].name} are the same tensor: remove one"
            )
        found[standard] = entry
    return found


def _check_wanted(folder: Path, plan: Plan, found: Mapping[str, Entry], stored: Assembly | None) -> None:
    """Every tensor of the plan is there, in the right shape and a dtype that can be read; `stored` knows the codes."""
    missing = [source for source in plan if source not in found]
    if missing == ["lm_head.weight"]:
        raise ModelError(
            f"{folder} lacks lm_head.weight: if the model shares it with the embedding, set tie_word_embeddings to "
            "true in config.json; else download the weights again"
        )
    if missing:
        close = difflib.get_close_matches(missing[0], [name for name in found if name not in plan], n=1)
        hint = f"; the nearest it has is {close[0]}" if close else ""
        raise ModelError(f"{folder} lacks {_some(missing)} that config.json asks for{hint}")
    for source, parts in plan.items():
        entry = found[source]
        shape = (sum(part[0] for _, part in parts), *parts[0][1][1:])
        size = None if stored is None else stored.row_bytes(*parts[0])
        if size is not None:
            if entry.dtype != CODES or entry.shape != (shape[0], size):
                raise ModelError(
                    f"{entry.file}: {entry.name} is {entry.dtype} {list(entry.shape)}, but codes of this format are "
                    f"{CODES} {[shape[0], size]}: quantise the model again"
                )
            continue
        if entry.shape != shape:
            raise ModelError(
                f"{entry.file}: {entry.name} has shape {list(entry.shape)}, but config.json asks for {list(shape)}: "
                "is config.json from the same model?"
            )
        if entry.dtype not in DTYPES:
            raise ModelError(
                f"{entry.file}: {entry.name} is stored as {entry.dtype}, not as one of {', '.join(DTYPES)}: "
                "load the checkpoint that this one was quantised from"
            )


def _check_extra(folder: Path, plan: Plan, found: Mapping[str, Entry], names: Names, tied: bool) -> None:
    """Nothing is left over but what is known to be harmless, or a copy of the embedding as a tied head."""
    extra = [name for name in found if name not in plan and not names.is_harmless(name)]
    head, embed = f"{names.modules['head']}.weight", f"{names.modules['embed']}.weight"
    if tied and head in extra:
        if not _same(found[head], found[embed]):
            raise ModelError(
                f"{found[head].file}: {head} differs from {embed}, though config.json says that they are one: "
                "set tie_word_embeddings to false in config.json"
            )
        extra.remove(head)
    if extra:
        raise ModelError(
            f"{folder} has {_some(extra)} that config.json has no place for: is config.json from the same model?"
        )


def _same(one: Entry, other: Entry) -> bool:
    """Equal bit for bit."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    rows = one.shape[0]
    pairs = zip(one.chunks(0, rows), other.chunks(0, rows), strict=True)
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs)


def _some(tensors: Iterable[str]) -> str:
    """A few names, and how many more."""
    listed = sorted(tensors)
    more = f" and {len(listed) - 3} more tensors" if len(listed) > 3 else ""
    return f"{', '.join(listed[:3])}{more}"
