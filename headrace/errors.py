"""What can go wrong, by whose fault: ConfigError is the user's, assert is ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HeadraceError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(HeadraceError, ValueError):
    """The user asked for something that cannot be: one line of what, why and what to do (exit 2)."""


class ModelError(ConfigError):
    """A model folder or checkpoint cannot be used: names the file and the fix."""


class ClashError(ConfigError):
    """Two members of a stack cannot run together: names both, why, and the nearest legal stack."""


class OutOfPages(HeadraceError):
    """The pool has fewer pages than a plan reserves; policies prevent it, so users never see it."""


class TierError(HeadraceError):
    """Keys and values could not be written to where they lie, or not read back: the step fails, and may be repeated."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error line: the closest known name, or all of them. Empty when nothing is known."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}? Known: {', '.join(known)}"
    return f"known: {', '.join(known)}" if known else "there are none"
