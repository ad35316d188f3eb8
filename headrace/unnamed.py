"""A file without a name, for what does not fit in memory: nothing is left of it however the process ends."""

from __future__ import annotations

import errno
import os
import tempfile


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

    def close(self) -> None:
        """Gives its room back."""
        self._file.close()
