"""Keeps pages that leave the pool in a file, written behind the engine's back and read ahead of its needs.

Paper   https://arxiv.org/abs/2506.20187 (LeoAM: keys and values between GPU, CPU and disk)
Idea    A disk is large, keeps what a burst of other prompts drove out, and reads faster than a model computes. Pages go
        to a stage in memory and from there to the file in a thread of its own; those of the sequence that waits first
        are read onto the stage while others run.
Trades  Room on the disk. A prefix that lies there takes its reading time to come back, some milliseconds a page.
Differs Whole pages, of every layer, and only between steps: none is attended to from where it lies. The file has no
        name from the start, so nothing is left of it however the process ends. Each page has a checksum: what cannot be
        written, or is not read as it was written, is computed again.
"""

from __future__ import annotations

import errno
import logging
import shutil
import zlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from headrace.config import parse_size
from headrace.errors import ConfigError
from headrace.kv.shelf import NEEDS
from headrace.slots import Card
from headrace.unnamed import UnnamedFile

_READERS = 2
_FLYING = 4  # reads under way at once, where somebody waits for them
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Disk:
    """One file without a name."""

    card: ClassVar[Card] = Card(
        slot="kv-tier", exact="bits", paper="https://arxiv.org/abs/2506.20187", needs=NEEDS, recordable=True
    )
    size: str = "8GiB"
    """Room in the file, which grows as pages come."""
    folder: str = "/var/tmp"
    """Where the file lies: a file system on a disk, not one in memory."""
    stage: str = "64MiB"
    """Memory for pages on their way."""

    def __post_init__(self) -> None:
        parse_size("kv-tier=disk:size", self.size)
        parse_size("kv-tier=disk:stage", self.stage)

    @property
    def num_bytes(self) -> int:
        return parse_size("kv-tier=disk:size", self.size)

    @property
    def memory_bytes(self) -> int:
        return parse_size("kv-tier=disk:stage", self.stage)

    @property
    def behind(self) -> Disk:
        return self

    @property
    def under(self) -> None:
        return None

    def start(self, slots: int, page_bytes: int) -> _Live:
        frames = min(slots, self.memory_bytes // page_bytes)
        if frames < 1:
            raise ConfigError(
                f"kv-tier=disk: a stage of {self.stage} has no room for a page of {page_bytes:,} bytes: raise stage, "
                "or lower page_tokens"
            )
        try:
            free = shutil.disk_usage(self.folder).free
            if free < slots * page_bytes:
                raise ConfigError(
                    f"kv-tier=disk: {self.folder} has {free >> 20} MiB free, not {self.size}: lower size, or choose "
                    "another folder"
                )
            return _Live(self.folder, page_bytes, frames)
        except OSError as error:
            raise ConfigError(
                f"kv-tier=disk: no file can be made in {self.folder} ({error.strerror}): choose another folder"
            ) from None


class _Staged(NamedTuple):
    """A slot's page on the stage."""

    frame: int
    work: Future[None]
    """Writes it to the file, or reads it from there."""
    reads: bool


class _Live:
    """See LiveTier. The books are one thread's; others only move bytes between a frame and the file.

    A frame is used again once its work is done, so a slot that is not on the stage lies in the file.
    """

    def __init__(self, folder: str, page_bytes: int, frames: int) -> None:
        self._folder, self._page_bytes = folder, page_bytes
        self._file = UnnamedFile(folder)
        self._frames_FX = torch.empty((frames, page_bytes), dtype=torch.uint8)
        self._free = list(range(frames))
        self._staged: OrderedDict[int, _Staged] = OrderedDict()  # by slot, oldest first
        self._sums: dict[int, int] = {}
        self._writer = ThreadPoolExecutor(1, "kv-tier-writer")
        self._readers = ThreadPoolExecutor(_READERS, "kv-tier-reader")
        self.takes = True
        self.written = self.read = 0

    def put(self, slot: int, page_X: Tensor) -> None:
        if slot in self._staged:
            wait([self._staged[slot].work])
            self._let_go(slot)
        self._sums.pop(slot, None)
        frame = self._frame(())
        if frame is None:  # everything is on its way: the disk is slower than what comes
            oldest = next(iter(self._staged))
            wait([self._staged[oldest].work])
            self._let_go(oldest)
            frame = self._free.pop()
        self._frames_FX[frame].copy_(page_X)
        self._staged[slot] = _Staged(frame, self._writer.submit(self._write, slot, frame), reads=False)
        self.written += self._page_bytes

    def get(self, slots: Sequence[int], pages: Sequence[Tensor]) -> list[bool]:
        came = [False] * len(slots)
        flying: deque[tuple[int, Future[None], Tensor]] = deque()

        def land() -> None:
            index, work, read_X = flying.popleft()
            came[index] = self._done(work)
            if read_X is not pages[index]:
                pages[index].copy_(read_X)

        for index, (slot, page_X) in enumerate(zip(slots, pages, strict=True)):
            staged = self._staged.get(slot)
            if staged is None:
                # on another device it cannot be read into
                read_X = page_X if page_X.device.type == "cpu" else torch.empty_like(page_X, device="cpu")
                flying.append((index, self._readers.submit(self._read, slot, read_X), read_X))
                self.read += self._page_bytes
            elif not staged.reads or self._done(staged.work):
                page_X.copy_(self._frames_FX[staged.frame])
                came[index] = True
            if len(flying) == _FLYING:
                land()
        while flying:
            land()
        return came

    def ahead(self, slots: Sequence[int]) -> None:
        for slot in slots:
            if slot in self._staged:
                continue
            frame = self._frame(slots)
            if frame is None:
                return
            work = self._readers.submit(self._read, slot, self._frames_FX[frame])
            self._staged[slot] = _Staged(frame, work, reads=True)
            self.read += self._page_bytes

    def close(self) -> None:
        self._writer.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)
        self._file.close()

    def _frame(self, wanted: Sequence[int]) -> int | None:
        """A frame whose work is done and that is none of these slots'; None if there is none."""
        if not self._free:
            done = (
                slot for slot, staged in self._staged.items() if staged.work.done() and slot not in wanted
            )
            slot = next(done, None)
            if slot is None:
                return None
            self._let_go(slot)
        return self._free.pop()

    def _let_go(self, slot: int) -> None:
        """The slot's page leaves the stage; its work is done."""
        staged = self._staged.pop(slot)
        self._free.append(staged.frame)
        if not staged.reads:
            self._done(staged.work)  # if it failed, the slot has no checksum, and reads as lost

    def _done(self, work: Future[None]) -> bool:
        """Whether it went well; waits for it."""
        error = work.exception()
        if error is None:
            return True
        if not isinstance(error, OSError):
            raise error
        if self.takes:
            self.takes = False
            _log.warning(
                "the KV tier in %s takes no more pages (%s): what it loses is computed again",
                self._folder,
                error.strerror,
            )
        return False

    def _write(self, slot: int, frame: int) -> None:
        view = _view(self._frames_FX[frame])
        self._file.write(slot * self._page_bytes, view)
        self._sums[slot] = zlib.crc32(view)

    def _read(self, slot: int, page_X: Tensor) -> None:
        view = _view(page_X)
        self._file.read(slot * self._page_bytes, view)
        if self._sums.get(slot) != zlib.crc32(view):
            raise OSError(errno.EIO, "a page is not what was written")


def _view(page_X: Tensor) -> memoryview:
    return page_X.numpy().data
