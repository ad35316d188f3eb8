"""Everything is written and read, however little the system moves at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from headrace.unnamed import UnnamedFile


@pytest.mark.parametrize("most", [1, 3, 7, 64])
def test_parts_are_moved_as_a_whole(most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a call of the system moves at most so many bytes."""
    write, read = os.pwrite, os.preadv

    def some(parts: Sequence[memoryview]) -> memoryview:
        return next(part for part in parts if len(part))[:most]

    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:most], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: write(fd, some(parts), at))
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: read(fd, [some(parts)], at))
    file, said = UnnamedFile(str(tmp_path)), [bytearray(range(n, n + 5)) for n in (1, 50, 100)]
    file.gather(9, [memoryview(part) for part in said])
    heard = [bytearray(n) for n in (4, 0, 7, 4)]
    file.scatter(9, [memoryview(part) for part in heard])
    assert b"".join(heard) == b"".join(said)
    with pytest.raises(OSError, match="became shorter"):
        file.scatter(10, [memoryview(part) for part in heard])
    file.close()
