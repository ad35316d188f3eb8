"""The table: a row per engine, medians with (lowest-highest), and the ratio to the best peer of the column."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.process import Case, as_json
from benchmarks.peers.roster import HEADRACE, Variant
from benchmarks.peers.runners import Reading
from headrace.meter import Spread

FEATURES = (
    "avx2",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
)
"""Of /proc/cpuinfo, those that decide which kernels run."""


@dataclass
class Results:
    """Everything measured so far."""

    groups: Mapping[str, Sequence[Variant]]
    readings: dict[Variant, list[Reading]] = field(default_factory=dict)
    failures: dict[Variant, str] = field(default_factory=dict)
    beaten: set[Variant] = field(default_factory=set)
    """Far behind another variant of their engine in the first repetition: they take no more turns."""
    limits: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """One figure of a reading."""

    title: str
    value: Callable[[Reading], float | None]
    digits: int = 1
    least: bool = False
    """The smallest is the best."""


@dataclass(frozen=True)
class Cell:
    """The best variant of an engine in one column."""

    spread: Spread
    label: str
    peer: bool


def columns(batches: Sequence[int]) -> list[Column]:
    """Prefill, decoding per batch size, memory."""

    def decode(batch: int) -> Column:
        return Column(f"decode tok/s, batch {batch}", lambda reading: reading.decode_tok_s.get(batch))

    first = Column("prefill tok/s", lambda reading: reading.prefill_tok_s)
    last = Column("peak RSS, GiB", lambda reading: reading.peak_rss_bytes / (1 << 30) or None, 2, True)
    return [first, *map(decode, batches), last]


def best(variants: Sequence[Variant], results: Results, column: Column) -> Cell | None:
    """The variant with the best median. None if none of them has the figure."""
    cells = []
    for variant in variants:
        values = [column.value(reading) for reading in results.readings.get(variant, [])]
        known = [value for value in values if value is not None]
        if known:
            cells.append(Cell(Spread.of(known), variant.label, variant.peer != HEADRACE))
    return _first(cells, column)


def beaten(variants: Sequence[Variant], results: Results, batches: Sequence[int]) -> set[Variant]:
    """Variants that another one of their engine leaves behind by more than a tenth in every speed."""
    speeds = [column for column in columns(batches) if not column.least]
    found = set()
    for variant in variants:
        rivals = [other for other in variants if other.engine == variant.engine and other != variant]
        pairs = [(best([variant], results, column), best(rivals, results, column)) for column in speeds]
        if all(own and other and own.spread.median < 0.9 * other.spread.median for own, other in pairs):
            found.add(variant)
    return found


def _first(cells: Sequence[Cell], column: Column) -> Cell | None:
    sign = 1 if column.least else -1
    return min(cells, key=lambda cell: sign * cell.spread.median, default=None)


def table(variants: Sequence[Variant], results: Results, batches: Sequence[int]) -> str:
    """Markdown, one row per engine; an engine without any figure has the reason in its row."""
    shown = columns(batches)
    engines: dict[str, list[Variant]] = {}
    for variant in variants:
        engines.setdefault(variant.engine, []).append(variant)
    rows = {engine: [best(ways, results, column) for column in shown] for engine, ways in engines.items()}
    anchors = [
        _first([cell for row in rows.values() if (cell := row[place]) and cell.peer], column)
        for place, column in enumerate(shown)
    ]
    lines = [
        "| engine | " + " | ".join(column.title for column in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for engine, row in rows.items():
        if any(row):
            cells = [_text(*found) for found in zip(row, shown, anchors, strict=True)]
        else:
            reasons = dict.fromkeys(results.failures.get(way, "has not run") for way in engines[engine])
            cells = ["**no result**: " + "; ".join(reasons), *[""] * (len(shown) - 1)]
        lines.append(f"| {engine} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _text(cell: Cell | None, column: Column, anchor: Cell | None) -> str:
    if cell is None:
        return ""
    median, low, high = (
        f"{value:.{column.digits}f}" for value in (cell.spread.median, cell.spread.low, cell.spread.high)
    )
    ratio = f" {cell.spread.median / anchor.spread.median:.2f}x" if anchor else ""
    mark = "**" if cell is anchor else ""
    return f"{mark}{median}{mark} ({low}-{high}){ratio}" + (f" {cell.label}" if cell.label else "")


def notes(variants: Sequence[Variant], results: Results) -> str:
    """A line per variant: version, what it says of itself, or why it has no figures or fewer of them."""
    lines = []
    for variant in variants:
        readings = results.readings.get(variant, [])
        said = [f"{readings[0].version}", *readings[0].notes] if readings else []
        if variant in results.failures:
            said.append(f"failed after {len(readings)} repetitions: {results.failures[variant]}")
        if variant in results.beaten:
            said.append("ran once: more than a tenth behind its engine's better variant in every speed")
        if said:
            lines.append(f"- {variant.name}: " + "; ".join(said))
    return "\n".join(lines)


def every_variant(variants: Sequence[Variant], results: Results, batches: Sequence[int]) -> str:
    """Markdown: medians alone, for those who ask what the better variant was better than."""
    shown = columns(batches)
    lines = [
        "| variant | " + " | ".join(column.title for column in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for variant in variants:
        cells = [best([variant], results, column) for column in shown]
        if any(cells):
            texts = [
                f"{cell.spread.median:.{column.digits}f}" if cell else ""
                for cell, column in zip(cells, shown, strict=True)
            ]
            lines.append(f"| {variant.name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def document(results: Results, case: Case, header: Sequence[str]) -> str:
    """The whole Markdown file."""
    parts = [f"# headrace and its peers: {case.shape}", "\n".join(header), _limits(results)]
    for weights, variants in results.groups.items():
        parts += [f"## {weights}", table(variants, results, case.batches)]
        parts += [
            notes(variants, results),
            "Medians of every variant:",
            every_variant(variants, results, case.batches),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _limits(results: Results) -> str:
    """The machine's limits, and what share of them headrace reaches."""
    units = {"read_gb_s": "memory read, GB/s"}
    lines = [
        f"- {units.get(name, name.replace('_gop_s', ' products, GOP/s'))}: {Spread.of(values):.1f}"
        for name, values in results.limits.items()
    ]
    head = ["Measured in the same run, natively, with the same threads:"] if lines else []
    return "\n".join([*head, *lines, *_shares(results)])


def _shares(results: Results) -> list[str]:
    lines = []
    for weights, variants in results.groups.items():
        readings = results.readings.get(variants[0], [])
        arithmetic = "bf16_gop_s" if weights == "bf16" else "int8_gop_s"
        for what, name, limit in (
            ("prefill", "prefill_gop_s", arithmetic if arithmetic in results.limits else "float32_gop_s"),
            ("decode at batch 1", "read_gb_s", "read_gb_s"),
        ):
            values = [value for reading in readings if (value := getattr(reading, name)) is not None]
            if values and limit in results.limits:
                mine, most = Spread.of(values), Spread.of(results.limits[limit])
                lines.append(
                    f"- {variants[0].engine}, {what}: {mine:.1f} of {most.median:.1f} = "
                    f"**{mine.median / most.median:.0%}** of `{limit}`"
                )
    return lines


def data(results: Results, case: Case, header: Sequence[str]) -> dict[str, Any]:
    """The same for the JSON file, with every single reading."""
    sizes = {"batch": case.batches, "prompt_len": case.prompt_len, "gen_len": case.gen_len}
    return {
        "shape": case.shape,
        **sizes,
        "threads": case.threads,
        "header": list(header),
        "limits": results.limits,
        "groups": {
            weights: [
                {
                    "engine": variant.engine,
                    "variant": variant.label,
                    "readings": [as_json(reading) for reading in results.readings.get(variant, [])],
                    "failure": results.failures.get(variant),
                }
                for variant in variants
            ]
            for weights, variants in results.groups.items()
        },
    }


def processor() -> tuple[str, list[str]]:
    """Name and telling features of this CPU."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    name = re.search(r"model name\s*:\s*(.+)", text)
    flags = (
        set(re.findall(r"^(?:flags|Features)\s*:\s*(.+)", text, re.M)[0].split()) if "lags" in text else set()
    )
    return (name[1] if name else platform.processor() or platform.machine()), [
        f for f in FEATURES if f in flags
    ]


def slug(name: str, cores: int) -> str:
    """A name of this machine for file names: intel-xeon-2cores."""
    words = re.sub(r"\((r|tm)\)|\b(cpu|processor)\b|@.*|\d+-core", " ", name.lower())
    return "-".join([*re.findall(r"[a-z0-9.]+", words), f"{cores}cores"])
