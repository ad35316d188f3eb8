"""The pool itself lies in a file, larger than memory; a layer's part of the pages that a step reads is fetched first.

Paper   https://arxiv.org/abs/2506.20187 (LeoAM: what tells which keys matter stays near, the keys come from the disk)
Idea    A step with a selector reads few of the pages, and the next step nearly the same ones. What the selector knows
        of a page stays in memory, and of keys and values what fits: single kv heads of single layers, as these choose
        for themselves. A page is written when it is whole, in the background; what a layer used last time is read while
        the layer before computes (kv/residence.py).
Trades  A step waits for what it reads anew. Without a selector it reads everything that does not fit, each time. Parts
        are whole memory pages, and each takes the time of a call: prefer long ones, by --page-tokens 64.
Differs The paper bounds chunks of growing size, and splits those that matter; here pages, all of one size, bounded by
        --kv-selector. Nothing is quantised on its way: that is the codec's business. Reads go past the system's page
        cache. Every part has a checksum: a step that gets back other bytes than were written fails, and is computed
        again.
"""

from __future__ import annotations

import errno
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from headrace.config import parse_size
from headrace.errors import ConfigError
from headrace.kv.residence import Parts
from headrace.kv.stored import Cut
from headrace.slots import Card
from headrace.unnamed import UnnamedFile
from headrace.weight.memory import PAGE

_READERS, _WRITERS = 8, 2
"""Threads, which mostly wait: a disk does most when it has many requests."""
_TOGETHER = 64
"""Most parts of one call of the system."""
_WHOLE = "it fetches parts of a page, and what this keeps of a page has none"


@dataclass(frozen=True, kw_only=True)
class Offload:
    """One file without a name, and how much of it is in memory."""

    card: ClassVar[Card] = Card(
        slot="kv-tier",
        exact="bits",
        paper="https://arxiv.org/abs/2506.20187",
        needs=(("cpu", "attention reads what it fetches in main memory"),),
        breaks=(
            (
                "swap",
                "paused sequences would move to memory, which is what is short; use --preempt recompute",
            ),
            ("whole_blocks", f"{_WHOLE}; use int8"),
            ("kv-codec=kvquant", f"{_WHOLE}; use int8"),
            ("kv-layout=razor", f"{_WHOLE}; use windows"),
            ("kv-keeper=d2o", f"{_WHOLE}; use streaming"),
        ),
    )
    unit: ClassVar[int] = PAGE
    memory: str
    """Of the pool that may be in memory, such as 2GiB. kv_bytes is its size on the disk."""
    folder: str = "/var/tmp"
    """Where the file lies: a file system on a disk, not one in memory."""

    def __post_init__(self) -> None:
        parse_size("kv-tier=offload:memory", self.memory)

    @property
    def memory_bytes(self) -> int:
        return parse_size("kv-tier=offload:memory", self.memory)

    @property
    def behind(self) -> None:
        return None

    @property
    def under(self) -> Offload:
        return self

    def back(self, arena_PX: Tensor, cut: Cut) -> _File:
        try:
            free = shutil.disk_usage(self.folder).free
            if free < arena_PX.numel():
                raise ConfigError(
                    f"kv-tier=offload: {self.folder} has {free >> 20} MiB free, not the {arena_PX.numel() >> 20} of "
                    "the KV pool: lower kv_bytes, or choose another folder"
                )
            return _File(self.folder, arena_PX, cut)
        except OSError as error:
            raise ConfigError(
                f"kv-tier=offload: no file can be made in {self.folder} ({error.strerror}): choose another folder"
            ) from None


class _File:
    """See Backing. Strip after strip, so that neighbours among pages are neighbours here."""

    def __init__(self, folder: str, arena_PX: Tensor, cut: Cut) -> None:
        self._file = UnnamedFile(folder)
        self._file.past_cache()
        self._bytes = arena_PX.view(-1).numpy().data
        self._pages, self._page_bytes = arena_PX.shape
        self._cut = cut
        self._firsts_S = (cut.sizes_S.cumsum() - cut.sizes_S) * self._pages
        self._sums_N = np.zeros(len(cut.strips) * self._pages, np.uint32)
        self._writers = ThreadPoolExecutor(_WRITERS, "kv-tier-writer")
        self._readers = ThreadPoolExecutor(_READERS, "kv-tier-reader")
        self.written = self.read = 0

    def move(self, parts_N: Parts, *, write: bool) -> list[Future[None]]:
        threads, count, job = (
            (self._writers, _WRITERS, self._write) if write else (self._readers, _READERS, self._read)
        )
        moved = int(self._cut.sizes_S[parts_N // self._pages].sum())
        if write:
            self.written += moved
        else:
            self.read += moved
        shares = [share for share in np.array_split(np.sort(parts_N), count) if len(share)]
        return [threads.submit(job, share) for share in shares]

    def close(self) -> None:
        self._writers.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)
        self._file.close()

    def _write(self, parts_N: Parts) -> None:
        for parts, start, views in self._runs(parts_N):
            self._sums_N[parts] = [zlib.crc32(view) for view in views]
            self._file.gather(start, views)

    def _read(self, parts_N: Parts) -> None:
        for parts, start, views in self._runs(parts_N):
            self._file.scatter(start, views)
            if any(self._sums_N[part] != zlib.crc32(view) for part, view in zip(parts, views, strict=True)):
                raise OSError(errno.EIO, "they are not what was written")

    def _runs(self, parts_N: Parts) -> Iterator[tuple[list[int], int, list[memoryview]]]:
        """Neighbours: the parts, where they begin in the file, and their bytes in memory."""
        strips_N, pages_N = np.divmod(parts_N, self._pages)
        sizes_N = self._cut.sizes_S[strips_N]
        firsts_N, starts_N = self._firsts_S[strips_N] + pages_N * sizes_N, self._cut.starts_S[strips_N]
        numbers, firsts, ends = parts_N.tolist(), firsts_N.tolist(), (firsts_N + sizes_N).tolist()
        at, until = ((pages_N * self._page_bytes + starts_N + more).tolist() for more in (0, sizes_N))
        first = 0
        for end in range(1, len(numbers) + 1):
            if end == len(numbers) or firsts[end] != ends[end - 1] or end - first == _TOGETHER:
                views = [self._bytes[at[i] : until[i]] for i in range(first, end)]
                yield numbers[first:end], firsts[first], views
                first = end
