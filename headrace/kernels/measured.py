"""Choices that were measured on this machine, kept from one run to the next.

They lie in `measured.json` in HEADRACE_CACHE, else in ~/.cache/headrace (XDG_CACHE_HOME), by machine: processor, level,
threads and build of the native module. A file that cannot be read or written costs the measuring, and nothing else.

Paper   https://arxiv.org/abs/2311.01282 (FlashDecoding++: which kernel from how many rows on, by weight shape)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

from headrace import kernels

_log = logging.getLogger(__name__)


def lookup(name: str, most: int, measure: Callable[[], int]) -> int:
    """The number kept under `name` for this machine, between 0 and `most`; measured and kept if there is none."""
    machine = _machine()
    kept = _read().get(machine, {}).get(name)
    if isinstance(kept, int) and 0 <= kept <= most:
        return kept
    value = measure()
    _log.debug("measured: %s = %d", name, value)
    found = _read()  # again: measuring takes a while, and others measure, too
    _write({**found, machine: {**found.get(machine, {}), name: value}})
    return value


def _machine() -> str:
    """Changes with everything that the measured times depend on."""
    native = kernels.explain()["native"]
    built = os.stat(native).st_mtime_ns if os.path.exists(native) else 0
    facts = (platform.machine(), _processor(), kernels.isa(), kernels.threads(), built)
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "model\t", "Model")):
                return line
    return platform.processor()


def _path() -> Path:
    cache = os.environ.get("HEADRACE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(cache) if cache else base / "headrace") / "measured.json"


def _read() -> dict[str, dict[str, int]]:
    try:
        data = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    tables = data.items() if isinstance(data, dict) else ()
    return {machine: table for machine, table in tables if isinstance(table, dict)}


def _write(data: dict[str, dict[str, int]]) -> None:
    """Whole or not at all: a reader never sees half a file."""
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
            json.dump(data, file, indent=1, sort_keys=True)
        os.replace(file.name, path)
    except OSError as error:
        _log.info("what was measured is not kept: %s", error)
