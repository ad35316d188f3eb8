"""A file without a name, for what does not fit in memory: nothing is left of it however the process ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Sequence


class UnnamedFile:
    """Written and read at any place, by any thread: each takes all of what it is given."""

    def __init__(self, folder: str) -> None:
        """Raises OSError."""
        self._file = tempfile.TemporaryFile(
            prefix="headrace-", dir=folder, buffering=0
        )  # its name is gone at once

    def fileno(self) -> int:
        """As of any file."""
        return self._file.fileno()

    def past_cache(self) -> None:
        """From here on whole memory pages are written and read, past the system's page cache if the file system can: it
        would take the memory that the file is to save."""
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(self._file, fcntl.F_SETFL, fcntl.fcntl(self._file, fcntl.F_GETFL) | os.O_DIRECT)

    def write(self, start: int, data: memoryview) -> None:
        """Raises OSError, e.g. where the disk is full."""
        done = 0
        while done < len(data):
            done += os.pwrite(self.fileno(), data[done:], start + done)

    def read(self, start: int, into: memoryview) -> None:
        """Fills it. Raises OSError, also where the file is shorter."""
        done = 0
        while done < len(into):
            count = os.preadv(self.fileno(), [into[done:]], start + done)
            if not count:
                raise OSError(errno.EIO, "the file became shorter")
            done += count

    def gather(self, start: int, parts: Sequence[memoryview]) -> None:
        """Writes them one after the other. Raises OSError."""
        self._rest(self.write, os.pwritev(self.fileno(), parts, start), start, parts)

    def scatter(self, start: int, parts: Sequence[memoryview]) -> None:
        """Fills them one after the other. Raises OSError."""
        self._rest(self.read, os.preadv(self.fileno(), parts, start), start, parts)

    @staticmethod
    def _rest(
        move: Callable[[int, memoryview], None], done: int, start: int, parts: Sequence[memoryview]
    ) -> None:
        """What the system left over of one call."""
        end = 0
        for part in parts:
            first, end = end, end + len(part)
            if done < end:
                skipped = max(0, done - first)
                move(start + first + skipped, part[skipped:])

    def close(self) -> None:
        """Gives its room back."""
        self._file.close()
