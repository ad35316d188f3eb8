"""What was measured of several stacks, and the ways to show it."""

from __future__ import annotations

import datetime
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.commands.output import write, write_table
from headrace.meter import Spread

MIB = 1 << 20
LOWER_IS_BETTER = ("bits/byte", "KL")


@dataclass
class Contender:
    """One stack. Failure: why it has no figures, or no more."""

    label: str
    flags: tuple[str, ...]
    turns: list[list[dict[str, Any]]] = field(default_factory=list)
    """Rows of `bench latency`, turn by turn."""
    scores: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `eval`."""
    failure: str = ""

    def spread(self, key: str, batch: int) -> Spread | None:
        """A figure over the turns, of the row with this batch size; None where it was not measured."""
        found = [row[key] for rows in self.turns for row in rows if row["batch"] == batch and key in row]
        return Spread.of(found) if found else None

    def fact(self, key: str) -> float | None:
        """A figure of the stack, not of a turn: the largest that was seen."""
        return max((row[key] for rows in self.turns for row in rows if key in row), default=None)

    def score(self, task: str, metric: str) -> dict[str, Any] | None:
        return next((s for s in self.scores if (s["task"], s["metric"]) == (task, metric)), None)


@dataclass
class Measured:
    """Stacks, and with which flags of `bench latency` each took `repeat` turns."""

    contenders: list[Contender]
    case: list[str]
    repeat: int

    @property
    def batches(self) -> list[int]:
        """Batch sizes, in order."""
        rows = next((c.turns[0] for c in self.contenders if c.turns), [])
        return [row["batch"] for row in rows]

    @property
    def metrics(self) -> list[tuple[str, str]]:
        """(task, metric) of every score, in order."""
        return list(dict.fromkeys((s["task"], s["metric"]) for c in self.contenders for s in c.scores))


def to_json(measured: Measured) -> list[dict[str, Any]]:
    """One entry per stack: its label, flags and failure, every turn's rows and every score."""
    return [
        {
            "stack": contender.label,
            "flags": list(contender.flags),
            "case": measured.case,
            "turns": contender.turns,
            "scores": contender.scores,
            **({"failure": contender.failure} if contender.failure else {}),
        }
        for contender in measured.contenders
    ]


def table(measured: Measured) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of text: medians (lowest-highest), and how many times the first stack's median."""
    columns, batches = ["stack"], measured.batches
    columns += [f"prefill tok/s, batch {batches[0]}"] if batches else []
    columns += [f"decode tok/s, batch {batch}" for batch in batches]
    columns += ["peak MiB", "weights MiB", "KV bytes/token", "files MiB"]
    columns += [f"{task} {metric}" for task, metric in measured.metrics]
    return columns, [_row(measured, contender) for contender in measured.contenders]


def _row(measured: Measured, contender: Contender) -> list[str]:
    first, batches = measured.contenders[0], measured.batches
    speeds = [("prefill_tok_s", batch) for batch in batches[:1]] + [("decode_tok_s", b) for b in batches]
    cells = [_speed(contender.spread(*of), first.spread(*of)) for of in speeds]
    for key, unit in (("peak_rss_bytes", MIB), ("weight_bytes", MIB), ("kv_bytes_per_token", 1)):
        cells.append(_times(contender.fact(key), first.fact(key), unit))
    cells.append(_times(contender.fact("file_bytes"), first.fact("file_bytes"), MIB))
    for metric in measured.metrics:
        score = contender.score(*metric)
        cells.append(f"{score['value']:.3f} ({score['low']:.3f}-{score['high']:.3f})" if score else "")
    return [contender.label, *cells]


def _speed(own: Spread | None, first: Spread | None) -> str:
    if own is None:
        return ""
    ratio = f", {own.median / first.median:.2f}x" if first is not None else ""
    return (f"{own:.1f}" if own.low < own.high else f"{own.median:.1f}") + ratio


def _times(own: float | None, first: float | None, unit: int) -> str:
    if own is None:
        return ""
    ratio = f", {own / first:.2f}x" if first else ""
    return f"{own / unit:.0f}{ratio}"


def failures(measured: Measured) -> list[str]:
    """A line for every stack that failed."""
    return [f"{c.label}: no result, or not all: {c.failure}" for c in measured.contenders if c.failure]


def write_terminal(measured: Measured) -> None:
    """The table on stdout."""
    columns, rows = table(measured)
    write_table(columns, rows, numbers=columns[1:])
    for line in failures(measured):
        write(line + "\n")


def to_markdown(measured: Measured, command: Sequence[str]) -> str:
    """The table with what it takes to repeat it."""
    columns, rows = table(measured)
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    used = next((rows[0] for c in measured.contenders for rows in c.turns), {})
    setting = f"{used.get('threads', '?')} threads, level {used.get('isa', '?')}"
    parts = [
        "# Stacks compared",
        f"{platform.machine()}, {setting}, {datetime.date.today()}. {measured.repeat} "
        f"turn{'s' if measured.repeat > 1 else ''} of each, interleaved, each in a process of its own: median "
        "(lowest-highest), and how many times the first stack's median. Scores with their 95 % intervals.",
        f"`headrace {shlex.join(command)}`",
        "\n".join(lines),
    ]
    return "\n\n".join([*parts, *failures(measured)]) + "\n"
