"""Python's standard library as text: its own source, read from the interpreter that runs. What models were trained on.

Some modules are held out by name; their text is shipped with the package so that figures on it reproduce on any
Python version.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

HELD_OUT = (
    "textwrap.py",
    "heapq.py",
    "bisect.py",
    "calendar.py",
    "shlex.py",
    "colorsys.py",
    "fractions.py",
    "graphlib.py",
    "queue.py",
    "sched.py",
    "string.py",
)
SKIPPED_FOLDERS = (
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "lib-dynload",
    "config",
    "lib2to3",
    "pydoc_data",
)
LARGEST_FILE = 400_000  # bytes; beyond this it is a table, not code


def library_files() -> list[Path]:
    """Every source file of the standard library that is not a test or a table, sorted by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(SKIPPED_FOLDERS)]
        for name in names:
            table = "encodings" in Path(folder).parts and name.startswith(("cp", "iso", "mac_", "koi"))
            if name.endswith(".py") and not table:
                found.append(Path(folder) / name)
    return [path for path in sorted(found) if path.stat().st_size <= LARGEST_FILE]


def is_held_out(path: Path) -> bool:
    """Whether it is a module that nobody was trained on."""
    return path.name in HELD_OUT and path.parent == Path(sysconfig.get_paths()["stdlib"])


def training_files() -> list[Path]:
    """Every file to train on, in a fixed order."""
    return [path for path in library_files() if not is_held_out(path)]


def training_texts() -> list[str]:
    """The texts to train on, in a fixed order, empty files left out."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in training_files()]
    return [text for text in texts if len(text) > 200]


def held_out_text() -> str:
    """The held-out modules, one after the other."""
    return "\n".join(path.read_text(encoding="utf-8") for path in library_files() if is_held_out(path))
