"""A file for weights that do not fit in memory.

Reads and writes go past the page cache where the file system lets them: the cache would take the memory that is to be
saved.
"""

from __future__ import annotations

import errno
import shutil
import zlib
from dataclasses import dataclass

from torch import Tensor

from headrace.errors import ModelError
from headrace.unnamed import UnnamedFile
from headrace.weight.memory import PAGE


@dataclass
class Stored:
    """A run of bytes in the file."""

    start: int
    size: int
    checksum: int
    read: bool = False
    """Whether it has been read back, and was the same."""


class Scratch:
    """Written once, read often, by one thread at a time."""

    def __init__(self, folder: str, expected: int) -> None:
        """expected: bytes that will be written, more or less. Raises ModelError if the folder cannot hold them."""
        self._folder, self._end = folder, 0
        try:
            free = shutil.disk_usage(folder).free
            self._file = UnnamedFile(folder)
        except OSError as error:
            raise ModelError(f"no file can be made in {folder}: {error.strerror}; {_ELSEWHERE}") from None
        if free < expected:
            raise ModelError(
                f"{folder} has {free / 2**30:.2f} GiB free, and {expected / 2**30:.2f} GiB of weights go there: "
                f"free some, or {_ELSEWHERE}"
            )
        self._file.past_cache()

    def write(self, data: Tensor) -> Stored:
        """Appends uint8 [whole pages]. Raises ModelError, e.g. where the disk is full."""
        assert data.data_ptr() % PAGE == 0 and len(data) % PAGE == 0, "direct writes are of whole pages"
        view = _view(data)
        stored = Stored(self._end, len(view), zlib.crc32(view))
        try:
            self._file.write(self._end, view)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            why = "it is full" if full else error.strerror
            raise ModelError(f"weights cannot be written to {self._folder}: {why}; {_ELSEWHERE}") from None
        self._end += len(view)
        return stored

    def read(self, stored: Stored, into: Tensor) -> None:
        """Fills uint8 [stored.size] with what was written; compares checksums when it is read for the first time.

        Raises ModelError if it cannot be read, or is not the same.
        """
        view = _view(into)
        try:
            self._file.read(stored.start, view)
        except OSError as error:
            raise ModelError(
                f"weights cannot be read back from {self._folder}: {error.strerror}; {_ELSEWHERE}"
            ) from None
        if not stored.read and zlib.crc32(view) != stored.checksum:
            raise ModelError(f"weights read back from {self._folder} are not those written; {_ELSEWHERE}")
        stored.read = True


def _view(data: Tensor) -> memoryview:
    return memoryview(data.numpy())  # type: ignore[arg-type]


_ELSEWHERE = "name another folder: --weight-tier window:folder=DIR,..."
