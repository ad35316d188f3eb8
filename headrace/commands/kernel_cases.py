"""The kernels of a decoder, one call at a time: what `headrace bench kernels` times.

Shape suffixes as in headrace/types.py; C copies of what a call reads. Calls take copies in turn, so that each finds its
operands in memory and not in a cache.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headrace.architecture import Architecture, Attention
from headrace.compose import Stack
from headrace.errors import ConfigError
from headrace.kernels.attention import Queries
from headrace.kernels.before import Before, Norm
from headrace.kernels.rms_norm import rms_norm
from headrace.kv.groups import GroupSpec
from headrace.types import Reads, Run
from headrace.weight.assemble import head_format, places
from headrace.weight.formats import Format
from headrace.weight.matrix import Matrix
from headrace.weight.memory import available_bytes, huge

MOST = 512 << 20
"""Bytes of copies, at most: beyond nearly every last-level cache."""
_LEAST = 64 << 20
_SHARE = 4  # copies take at most one part in this many of the free memory
_ITEMS = 4 << 20  # random numbers at once
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_OF_DTYPE = {torch.bfloat16: "bf16"}


Call = Callable[[int], object]
"""Runs a kernel on copy i, 0 <= i < copies."""


@dataclass(frozen=True)
class Case:
    """One kernel at one row count."""

    kernel: str
    size: str
    """Of what it reads, for people."""
    rows: int
    copies: int
    """Of what it reads."""
    read_bytes: float
    """That a call must read at least."""
    operations: float
    """Multiplications and additions."""
    arithmetic: str
    """Which of headrace.limits.ARITHMETIC bounds it."""


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    architecture: Architecture
    stack: Stack
    dtype: torch.dtype
    rows: Sequence[int]
    contexts: Sequence[int]
    page_tokens: int
    working: int
    """Bytes of copies."""

    @property
    def arithmetic(self) -> str:
        """Of operations in the model's dtype."""
        return _OF_DTYPE.get(self.dtype, "float32")


def working_bytes() -> int:
    """Twice the last-level cache, between 64 and 512 MiB, and at most a quarter of the free memory."""
    caches = [_kib(path) for path in _CACHES.glob("index*/size")]
    wanted = min(max(2 * max(caches), _LEAST), MOST) if caches else MOST
    free = available_bytes("cpu")
    return wanted if free is None else min(wanted, free // _SHARE)


def count(setting: Setting) -> int:
    """How many cases there are."""
    per_context = sum(1 for _ in _attention_rows(setting))
    distinct = len(_matrices(setting)) * len(setting.rows) + len(_attentions(setting)) * per_context
    return distinct + 2 * len(setting.rows)


def cases(setting: Setting) -> Iterator[tuple[Case, Call]]:
    """Every kernel of a decoding step, at each row count. What a case reads is freed when its kernel is done.

    Raises ConfigError for a context that does not fit in the working set.
    """
    for member in _matrices(setting):
        yield from _products(setting, member)
    for attention, group in _attentions(setting):
        yield from _attend(setting, attention, group)
    yield from _norms(setting)
    yield from _rotations(setting)


# ---- products ----


class _Member(NamedTuple):
    name: str
    outputs: int
    inputs: int
    form: Format
    before: Before


def _matrices(setting: Setting) -> list[_Member]:
    """The distinct ones, in the order of a step."""
    model, form = setting.architecture, setting.stack.one("weights")
    norm = Norm(torch.ones(model.width, dtype=setting.dtype), model.norm_eps)
    found: dict[tuple[str, int, int], _Member] = {}
    for name, shape in places(model)[1].items():
        module = name.split(".")[-2]
        if len(shape) != 2 or module == "router" or (module == "embed" and not model.tied_head):
            continue
        module = "head" if module == "embed" else module
        gate = model.blocks[0].mlp.activation
        before: Before = {"qkv": norm, "gate_up": norm, "down": gate}.get(module)
        of = head_format(form) if module == "head" else form
        found.setdefault((module, *shape), _Member(module, shape[0], shape[1], of, before))
    return sorted(found.values(), key=lambda member: member.name == "head")


def _products(setting: Setting, member: _Member) -> Iterator[tuple[Case, Call]]:
    name, outputs, inputs, form, before = member
    first = _packed(setting, member)
    number = max(1, -(-setting.working // first.nbytes))
    matrices = _copies(first, number)
    wide = 2 * inputs if isinstance(before, str) else inputs
    for rows in setting.rows:
        x_TI = torch.randn(rows, wide, dtype=setting.dtype)

        def call(i: int, x: Tensor = x_TI) -> Tensor:
            return matrices[i].multiply(x, before=before)

        yield (
            Case(
                name,
                f"{outputs} x {inputs}",
                rows,
                len(matrices),
                first.nbytes + x_TI.nbytes,
                2 * rows * outputs * inputs,
                form.arithmetic or setting.arithmetic,
            ),
            call,
        )


def _packed(setting: Setting, member: _Member) -> Matrix:
    """A matrix of repeated random rows."""
    packing = member.form.start(member.outputs, member.inputs, setting.dtype)
    height = max(64, _ITEMS // member.inputs // 64 * 64)
    rows_RI = torch.randn(min(height, member.outputs), member.inputs, dtype=setting.dtype)
    for start in range(0, member.outputs, height):
        packing.put(start, rows_RI[: member.outputs - start])
    return packing.finish()


def _copies(matrix: Matrix, number: int) -> list[Matrix]:
    """The matrix and copies of it, in huge pages as formats have them, side by side."""
    each = matrix.nbytes + 4096
    area, used = huge((number - 1) * each), 0

    def place(tensor: Tensor) -> Tensor:
        nonlocal used
        room = area[used : used + tensor.nbytes]
        used += -(-tensor.nbytes // 64) * 64
        return room.view(tensor.dtype).view(tensor.shape).copy_(tensor)

    return [matrix, *(_duplicate(matrix, place) for _ in range(number - 1))]


def _duplicate(value: Any, place: Callable[[Tensor], Tensor]) -> Any:
    """A copy that shares no tensor: packing a matrix again would take a hundred times as long."""
    if isinstance(value, Tensor):
        return place(value)
    if isinstance(value, tuple):
        parts = [_duplicate(part, place) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    names = [*getattr(value, "__slots__", ()), *getattr(value, "__dict__", ())]
    if not names:
        return value
    twin = copy.copy(value)
    for name in names:
        object.__setattr__(twin, name, _duplicate(getattr(value, name), place))
    return twin


# ---- attention ----


def _attentions(setting: Setting) -> list[tuple[Attention, GroupSpec]]:
    """The distinct ones, each with a cache group of one layer."""
    found: dict[tuple[Any, ...], tuple[Attention, GroupSpec]] = {}
    for group in setting.stack.one("kv-layout").groups(setting.architecture):
        for member in group.members:
            attention = setting.architecture.blocks[member.layer].attention
            key = (attention.heads, attention.kv_heads, member.kv_heads, member.head_size, attention.window)
            found.setdefault(key, (attention, dataclasses.replace(group, members=(member,))))
    return list(found.values())


def _attention_rows(setting: Setting) -> Iterator[tuple[int, int, bool]]:
    """(context, rows, whether each row is a sequence of its own)."""
    for context in setting.contexts:
        for rows in setting.rows:
            yield context, rows, True
        for rows in setting.rows:
            if 1 < rows <= context:
                yield context, rows, False


def _attend(setting: Setting, attention: Attention, group: GroupSpec) -> Iterator[tuple[Case, Call]]:
    codec, (member,), size = setting.stack.one("kv-codec"), group.members, setting.page_tokens
    live = codec.start(group, size, setting.dtype)
    page_bytes = codec.page_bytes(group, size, setting.dtype)
    arena_PX = huge(max(1, setting.working // page_bytes) * page_bytes).view(-1, page_bytes)
    _fill(live, arena_PX, member, size, setting.dtype)
    heads = attention.heads * len(member.kv_heads) // attention.kv_heads
    pages = torch.arange(len(arena_PX))
    for context, rows, apart in _attention_rows(setting):
        per_sequence, sequences = -(-context // size), rows if apart else 1
        copies = len(arena_PX) // (per_sequence * sequences)
        if copies == 0:
            if sequences == 1:
                raise ConfigError(
                    f"--contexts={context} does not fit in a working set of {setting.working >> 20} MiB: lower it"
                )
            continue  # more sequences than the working set holds
        q_TNH = torch.randn(rows, heads, member.head_size, dtype=setting.dtype)
        first, last = (context - 1 if apart else context - rows), context
        positions = torch.full((rows,), first) if apart else torch.arange(first, last)
        queries = Queries(q_TNH, positions, attention.scale, attention.window)
        reads = _reads(pages, per_sequence, sequences, rows, context, copies)
        seen, stored = _seen(positions, attention.window)

        def call(i: int, queries: Queries = queries, reads: Sequence[Reads] = reads) -> object:
            return live.attend(arena_PX, member.layer, queries, reads[i])

        yield (
            Case(
                f"attention, {'a sequence per row' if apart and rows > 1 else 'one sequence'}",
                f"{context} tokens",
                rows,
                copies,
                stored * sequences * page_bytes / size + q_TNH.nbytes,
                4 * member.head_size * heads * seen,
                "float32",
            ),
            call,
        )


def _fill(live: Any, arena_PX: Tensor, member: Any, page_tokens: int, dtype: torch.dtype) -> None:
    """Stores the same random keys and values everywhere."""
    shape, tokens = (len(member.kv_heads), member.head_size), len(arena_PX) * page_tokens
    k_TGH, v_TGH = (torch.randn(min(tokens, 4096), *shape, dtype=dtype) for _ in range(2))
    for start in range(0, tokens, len(k_TGH)):
        slots = torch.arange(start, min(start + len(k_TGH), tokens))
        live.write(arena_PX, member.layer, k_TGH[: len(slots)], v_TGH[: len(slots)], slots)


def _reads(
    pages: Tensor, per_sequence: int, sequences: int, rows: int, context: int, copies: int
) -> list[Reads]:
    """What each copy's rows read: `sequences` runs of pages, rows / sequences rows each."""
    each, span = rows // sequences, sequences * per_sequence
    runs = tuple(Run(s * each, (s + 1) * each, s * per_sequence, 0, context) for s in range(sequences))
    return [Reads(pages[i * span : (i + 1) * span], runs) for i in range(copies)]


def _seen(positions: Tensor, window: int | None) -> tuple[int, int]:
    """Tokens that all rows see, one row after the other, and tokens that any of a sequence's rows sees."""
    ends = [int(position) + 1 for position in positions]
    most = window or max(ends)
    first = max(0, ends[0] - most)
    return sum(min(end, most) for end in ends), max(ends) - first


# ---- rows alone ----


def _norms(setting: Setting) -> Iterator[tuple[Case, Call]]:
    width = setting.architecture.width
    weight_D = torch.ones(width, dtype=setting.dtype)
    data = _numbers(setting)
    for rows in setting.rows:
        x_CTD = _split(data, rows, width)

        def call(i: int, x_CTD: Tensor = x_CTD) -> Tensor:
            return rms_norm(x_CTD[i], weight_D, setting.architecture.norm_eps)

        read = x_CTD[0].nbytes + weight_D.nbytes
        yield Case("rms_norm", str(width), rows, len(x_CTD), read, 3 * rows * width, setting.arithmetic), call


def _rotations(setting: Setting) -> Iterator[tuple[Case, Call]]:
    spec = setting.architecture.blocks[0].attention
    heads, size, most = spec.heads + spec.kv_heads, spec.head_size, max(setting.rows)
    live = spec.positions.start(size, spec.theta, most, torch.device("cpu"), setting.dtype)
    data = _numbers(setting)
    for rows in setting.rows:
        x_CTX = _split(data, rows, heads * size)
        turn = live.at(torch.arange(rows))

        def call(i: int, turn: Any = turn, x_CTX: Tensor = x_CTX) -> object:
            return turn(x_CTX[i].unflatten(-1, (heads, size)))

        read = x_CTX[0].nbytes + 4 * rows * size
        operations = 3 * rows * heads * size
        yield Case("rope", f"{heads} x {size}", rows, len(x_CTX), read, operations, setting.arithmetic), call


def _numbers(setting: Setting) -> Tensor:
    """The working set, full of small numbers; at least the largest number of rows."""
    spec = setting.architecture.blocks[0].attention
    width = max(setting.architecture.width, (spec.heads + spec.kv_heads) * spec.head_size)
    least = max(setting.rows) * width * setting.dtype.itemsize
    return huge(max(setting.working, least) // 64 * 64 + 64).view(setting.dtype).fill_(0.5)


def _split(data: Tensor, rows: int, width: int) -> Tensor:
    """As many [rows, width] as fit: [C, rows, width]."""
    copies = len(data) // (rows * width)
    return data[: copies * rows * width].view(copies, rows, width)


def _kib(path: Path) -> int:
    """Bytes of "32768K"; 0 where the system does not say."""
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    return int(text[:-1]) << 10 if text.endswith("K") and text[:-1].isdigit() else 0
