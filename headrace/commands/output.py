"""What a verb shows: results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from typing import Any

from headrace.errors import ConfigError


def write(text: str) -> None:
    """Shows text on stdout now."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """Shows one JSON value on one line of stdout."""
    write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def note(line: str, quiet: bool = False) -> None:
    """Tells the user something that is not the result, on stderr. Where that is full or closed, work goes on."""
    if not quiet:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"headrace: {line}\n")
            sys.stderr.flush()


def write_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str] = ()
) -> None:
    """Shows a table on stdout; the columns in `numbers` are aligned to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*[cell.replace("[", r"\[") for cell in row])
    # A pipe has no width of its own: rows must not be folded there.
    console = Console() if sys.stdout.isatty() else Console(width=400)
    console.print(table, crop=False)


def need_matplotlib() -> None:
    """For --plot, before a run and not after it. Raises ConfigError."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install matplotlib")
