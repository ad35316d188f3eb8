"""Files of numbers that were found out about a model once, and that a technique does not run without."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from headrace.errors import ConfigError

T = TypeVar("T")


def write(path: Path, found: msgspec.Struct) -> None:
    """As read reads it: one line of JSON."""
    path.write_bytes(msgspec.json.encode(found) + b"\n")


def read(path: str, kind: type[T], what: str, advice: str, *, most: int, verb: str = "is") -> T:
    """What the file holds. what: "profile of heads", say, in messages ("PATH is no profile of heads", or another verb).
    most: bytes. Raises ConfigError, which ends in the advice, for a file that cannot be it."""
    try:
        if Path(path).stat().st_size > most:
            raise ConfigError(f"{path} is larger than {most} bytes: no {what}; {advice}")
        return msgspec.json.decode(Path(path).read_bytes(), type=kind)
    except OSError as error:
        raise ConfigError(f"cannot read the {what} {path}: {error.strerror}; {advice}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} {verb} no {what}: {error}; {advice}") from None
