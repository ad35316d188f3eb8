"""Kernels: one folder per operation, and the choice of the implementation that runs.

    kernels/<operation>/__init__.py    the signature, its contract, and the choice by device and dtype
                        reference.py   the obvious PyTorch twin, which all others are tested against
                        cpu.cpp        the native loops, compiled once per instruction-set level
                        kernel.h       what cpu.cpp offers; bind.cpp checks arguments and calls it, with def_call
                                       (headrace/calls.h) so that recordings need no Python to make the call again

`limits/` is no operation: native loops that measure the machine (headrace/limits.py), with nothing to refer to.

A *level* is "reference" (PyTorch) or a set of instructions the native module is compiled for: "generic", "avx2",
"avx512". The highest one that the processor has is used. The environment can lower it, and is read at first use:

    HEADRACE_KERNELS=reference   the PyTorch twins only
    HEADRACE_KERNELS=native      refuse to run without the native module
    HEADRACE_ISA=avx2            this level, or lower where an operation lacks it

Importing this package loads nothing; the native module is loaded when an operation first asks for it.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from headrace.errors import ConfigError

REFERENCE = "reference"

Call = Callable[[], Any]
"""A native call with its arguments, to make again."""

_log = logging.getLogger(__name__)
_level: str | None = None  # the level in use; None until first asked
_calls: list[Call] | None = None  # where native calls are written down


def isa() -> str:
    """The level in use, decided at first call: "reference", "generic", "avx2" or "avx512".

    Raises ConfigError where the environment asks for something unknown, or that this machine lacks.
    """
    global _level
    if _level is None:
        _level = _choose()
    return _level


def available() -> tuple[str, ...]:
    """The levels this machine runs, lowest first; "reference" is always the first."""
    module, _ = _load()
    return (REFERENCE, *module.supported()) if module else (REFERENCE,)


def operations() -> tuple[str, ...]:
    """The names of the operation folders."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules(__path__) if found.ispkg))


def native(operation: str) -> Callable[..., Any] | None:
    """The native function to call for `operation` at the level in use; None means: run the reference.

    The function is called like the operation's folder; further ones of the same folder are `<folder>_<what>`.
    """
    level, function = _find(operation, isa())
    if _calls is None or function is None:
        return function
    module, _ = _load()
    bind = getattr(getattr(module, level).calls, operation, None)
    return functools.partial(_write_down, _calls, bind or functools.partial(functools.partial, function))


@contextmanager
def written_down(calls: list[Call]) -> Iterator[None]:
    """Native calls are made as ever, and appended to `calls`, until the end of the `with` block.

    Arguments are checked now and for all times; the calls hold them, and they must not be resized.
    """
    global _calls
    before, _calls = _calls, calls
    try:
        yield
    finally:
        _calls = before


def _write_down(calls: list[Call], bind: Callable[..., Call], *arguments: Any) -> None:
    call = bind(*arguments)
    call()
    calls.append(call)


def joined(calls: list[Call]) -> list[Call]:
    """The same calls, each stretch of those that are bound natively (headrace/calls.h) as one."""
    module, _ = _load()
    assert module is not None, "native calls, and no native module"
    made: list[Call] = []
    for call in calls:
        if not isinstance(call, module.Calls):
            made.append(call)
            continue
        if not made or not isinstance(made[-1], module.Calls):
            made.append(module.Calls())
        made[-1].add(call)  # type: ignore[attr-defined]
    return made


def explain() -> dict[str, Any]:
    """What runs and why, for `headrace doctor`: isa, available, native (a path, or why not), asked, operations."""
    module, reason = _load()
    asked = {name: os.environ[name] for name in ("HEADRACE_KERNELS", "HEADRACE_ISA") if os.environ.get(name)}
    return {
        "isa": isa(),
        "available": list(available()),
        "native": module.__file__ if module else reason,
        "asked": asked,
        "operations": {operation: _find(operation, isa())[0] for operation in operations()},
    }


def set_threads(count: int) -> None:
    """The size of the native thread pool, the calling thread included; 0 is one per core of this process."""
    module, _ = _load()
    if module is not None:
        module.set_threads(count)


def threads() -> int:
    """The size of the native thread pool; of PyTorch's without the native module."""
    module, _ = _load()
    if module is None:
        from torch import get_num_threads

        return get_num_threads()
    count: int = module.threads()
    return count


@contextmanager
def forced(level: str) -> Iterator[None]:
    """Use `level`, whatever the environment says, until the end of the `with` block (tests, benchmarks)."""
    global _level
    before, _level = _level, _checked(level, "forced")
    try:
        yield
    finally:
        _level = before


def forget() -> None:
    """Forget what was loaded and chosen: the next use reads the environment again (tests)."""
    global _level
    _level = None
    _load.cache_clear()
    _find.cache_clear()


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    """The native module, or None and the reason."""
    try:
        return importlib.import_module("headrace.kernels._native"), ""
    except ImportError as error:
        return None, f"the native module cannot be loaded ({error})"


@functools.cache
def _find(operation: str, level: str) -> tuple[str, Callable[..., Any] | None]:
    """The highest level up to `level` that has `operation`, and its function there."""
    levels = available()
    module, _ = _load()
    for candidate in reversed(levels[1 : levels.index(level) + 1]):
        function = getattr(getattr(module, candidate), operation, None)
        if function is not None:
            return candidate, function
    return REFERENCE, None


def _choose() -> str:
    """Read the environment; log one line where the fast kernels cannot be used and nobody asked for that."""
    mode = os.environ.get("HEADRACE_KERNELS", "")
    if mode not in ("", "native", REFERENCE):
        raise ConfigError(f"HEADRACE_KERNELS={mode} is unknown: use native or reference, or leave it unset")
    if mode == REFERENCE:
        return REFERENCE
    asked = os.environ.get("HEADRACE_ISA", "")
    if asked:
        return _checked(asked, "HEADRACE_ISA")
    module, reason = _load()
    if module is None:
        if mode == "native":
            raise ConfigError(
                f"HEADRACE_KERNELS=native, but {reason}: reinstall headrace with a C++ compiler"
            )
        _log.warning("%s: running the slow PyTorch reference kernels; reinstall headrace to build it", reason)
    return available()[-1]


def _checked(level: str, source: str) -> str:
    if level in available():
        return level
    module, reason = _load()
    if module is not None:
        compiled = level in module.levels
        reason = "this processor lacks these instructions" if compiled else "no such level is compiled in"
    raise ConfigError(f"{source}={level}: {reason}; use one of {', '.join(available())}")
