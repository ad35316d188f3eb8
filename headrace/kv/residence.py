"""Residence: which parts of a pool are in memory, where the pool lies on a tier and is larger than memory.

    arena   [ page 0 ][ page 1 ] ...            addresses of the whole pool, most of them with no memory behind
    page    [ strip ][ strip ] ... [ known ]    one kv head of one layer each; what a selector knows of it stays
    part    a strip of a page, number strip * pages + page: what comes and goes

    part    absent  not in memory: on the tier, or never written
            clean   in memory and on the tier
            dirty   in memory only

An address never changes, so kernels, codecs, selectors and tables know nothing of this. What a layer's *pass* touches
stays until the pass is over. Layers come round and round, so that what was used longest ago is needed next: room is
made of parts that their layer left out last time, then of those of the layers that ran last. A page that is whole is
written at once, in the background; and what the next layer used last time is read while this one computes.
"""

from __future__ import annotations

import logging
import mmap
from concurrent.futures import Future, wait
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from headrace.errors import ConfigError, TierError
from headrace.kv.stored import Cut
from headrace.weight.memory import addresses

Parts = NDArray[np.int64]
_ABSENT, _COMING, _HERE, _GOING = range(4)  # _GOING: here, and being written
_STALE = np.int64(1) << 62
_log = logging.getLogger(__name__)


class Backing(Protocol):
    """Where parts lie: what a tier that holds a pool is at work. Threads of its own move bytes."""

    written: int  # bytes so far
    read: int

    def move(self, parts_N: Parts, *, write: bool) -> list[Future[None]]:
        """Writes these, of which none is being moved, or reads them back; of the order nothing is promised. A future
        raises OSError if some could not be moved, or are not what was written."""

    def close(self) -> None:
        """Gives everything back. Harmless when done twice."""


class Under(Protocol):
    """A tier under the pool: kv_bytes is the room there."""

    unit: ClassVar[int]
    """What it moves are whole multiples of so many bytes, at multiples of them: see GroupSpec."""

    @property
    def memory_bytes(self) -> int:
        """What of the pool may be in main memory."""

    def back(self, arena_PX: Tensor, cut: Cut) -> Backing:
        """At work on a pool at these addresses. Raises ConfigError if there is no room for it."""


class _Flight(NamedTuple):
    parts_N: Parts
    work: list[Future[None]]
    write: bool


class Residence:
    """One pool's. One thread calls it."""

    def __init__(self, cut: Cut, pages: int, tier: Under) -> None:
        """Raises ConfigError if the tier's memory is too little, or enough for all, or if it cannot start."""
        memory = tier.memory_bytes
        if memory >= pages * cut.page_bytes:
            raise ConfigError(
                f"--kv-tier may keep {memory:,} bytes in memory, and the KV pool has {pages * cut.page_bytes:,}: "
                "leave --kv-tier out, or raise kv_bytes"
            )
        if memory < pages * cut.least:
            raise ConfigError(
                f"--kv-tier may keep {memory:,} bytes of the KV pool in memory, and attention to all of it needs "
                f"{pages * cut.least:,}: raise memory to that, or lower kv_bytes to "
                f"{memory // cut.least * cut.page_bytes}"
            )
        self.cut, self.pages = cut, pages
        self._area, arena = addresses(pages * cut.page_bytes)
        self.arena_PX: Tensor = arena.view(pages, cut.page_bytes)
        self.lost: set[int] = set()
        """Pages of which something cannot be read any more, until they are free."""
        self._room = memory - pages * cut.stays
        self._held = 0
        """Bytes of parts in memory, or on their way there."""
        count = len(cut.strips) * pages
        self._state_N = np.full(count, _ABSENT, np.uint8)
        self._stored_N = np.zeros(count, bool)
        """Whether the tier has it as it is."""
        self._used_N = np.zeros(count, np.int64)
        """The last pass that used it."""
        self._ran_S = np.zeros(len(cut.strips), np.int64)
        """The last pass of its layer that is over."""
        self._pass, self._layer, self._read = 0, -1, False
        self._flights: list[_Flight] = []
        self._fault: OSError | None = None
        """Why the tier takes no more."""
        self._backing: Backing = tier.back(self.arena_PX, cut)

    @property
    def moved(self) -> dict[str, int]:
        """What the tier has done so far, as Counters has it."""
        return {"tier_written_bytes": self._backing.written, "tier_read_bytes": self._backing.read}

    # ---- a layer's pass ----

    def need(self, layer: int, parts_N: Parts, *, write: bool = False) -> None:
        """In memory from here on, until the pass is over. One begins with another layer, or writes after reads. write:
        they will change, or are new. Raises TierError."""
        if layer != self._layer or (write and self._read):
            self._turn(layer)
        self._read = not write
        self._used_N[parts_N] = self._pass
        self._land(False, wanted=parts_N)
        absent_N = self._state_N[parts_N] == _ABSENT
        if not write:
            absent_N &= self._stored_N[parts_N]  # there may be others, of which no row sees anything
        if absent_N.any():
            missing_N = np.unique(parts_N[absent_N])
            stored_N = self._stored_N[missing_N]
            self._make_room(int(self._sizes(missing_N).sum()))
            self._take(missing_N[~stored_N])
            self._bring(missing_N[stored_N])
        if write:
            self._land(True, wanted=parts_N)
            self._stored_N[parts_N] = False

    def whole(self, parts_N: Parts) -> None:
        """These will not change soon: they are written now, so that nobody waits for that."""
        if self._fault is None:
            self._land(True)
            self._send(parts_N[self._state_N[parts_N] == _HERE])

    def ahead(self, strips: range) -> None:
        """The layer with these strips is next: what it used last is fetched, in room that is better left to it."""
        first, end = strips.start * self.pages, strips.stop * self.pages
        ran_N = self._ran_S[strips.start : strips.stop].repeat(self.pages)
        wanted_N = (self._state_N[first:end] == _ABSENT) & self._stored_N[first:end]
        parts_N = np.flatnonzero(wanted_N & (self._used_N[first:end] == ran_N)) + first
        self._land(True)
        self._land(False)
        if not len(parts_N) or any(not flight.write for flight in self._flights):
            return
        lacking = self._held + int(self._sizes(parts_N).sum()) - self._room
        if lacking > 0:
            self._evict(self._victims(lacking, clean=True))
        fits_N = self._sizes(parts_N).cumsum() <= self._room - self._held
        parts_N = parts_N[fits_N]
        if len(parts_N):
            self._take(parts_N, _COMING)
            self._start(parts_N, write=False)

    # ---- whole pages ----

    def copy(self, source: int, target: int) -> None:
        """All that was written of a page. Raises TierError."""
        source_X, target_X, group = self.arena_PX[source], self.arena_PX[target], 0
        for number, strip in enumerate(self.cut.strips):
            part = number * self.pages + source
            if self._state_N[part] != _ABSENT or self._stored_N[part]:
                self._turn(-1)
                self.need(-1, np.array([number * self.pages + target]), write=True)
                self.need(-1, np.array([part]))
                target_X[strip.place] = source_X[strip.place]
                group = strip.group
        target_X[self.cut.known[group]] = source_X[self.cut.known[group]]

    def drop(self, page: int) -> None:
        """Its bytes are of no use any more, wherever they are."""
        parts_N = np.arange(len(self.cut.strips)) * self.pages + page
        self._land(False, wanted=parts_N)
        self._land(True, wanted=parts_N)
        self._held -= int(self.cut.sizes_S[self._state_N[parts_N] == _HERE].sum())
        self._state_N[parts_N], self._stored_N[parts_N] = _ABSENT, False
        self._give_back(page * self.cut.page_bytes, self.cut.page_bytes)
        self.lost.discard(page)

    def close(self) -> None:
        """Gives everything back. Harmless when done twice."""
        self._backing.close()

    def check(self) -> None:
        """Memory is within its bound."""
        here_N = np.flatnonzero(self._state_N)
        assert self._held == self._sizes(here_N).sum() <= self._room, "more is in memory than may be"

    # ---- details ----

    def _turn(self, layer: int) -> None:
        """A pass is over, and one of this layer begins."""
        for (_, own), strips in self.cut.layers.items():
            if own == self._layer:
                self._ran_S[strips.start : strips.stop] = self._pass
        self._pass, self._layer, self._read = self._pass + 1, layer, False

    def _make_room(self, size: int) -> None:
        """Evicts until there is room for `size` bytes."""
        again = self._fault is not None  # a disk that was full may have room again
        while self._held + size > self._room:
            victims_N = self._victims(self._held + size - self._room, clean=self._fault is not None)
            if len(victims_N):
                dirty_N = victims_N[~self._stored_N[victims_N]]
                if len(dirty_N):
                    self._send(dirty_N)
                    self._land(True, wanted=dirty_N)
                self._evict(victims_N[self._stored_N[victims_N]])
            elif self._flights:
                for write in (True, False):
                    self._land(write, wanted=np.arange(len(self._state_N)))
            elif again:
                again, self._fault = False, None
            else:
                fault, self._fault = self._fault, None
                assert fault is not None, "one layer takes more than there is"
                raise TierError(
                    f"keys and values cannot be written to where they lie ({fault.strerror}), and memory has no room "
                    "for more: free room there, or name another folder"
                )

    def _victims(self, size: int, *, clean: bool) -> Parts:
        """Parts of so many bytes together, or all that can go: those that are missed last come first. clean: only such
        as need not be written."""
        found_N = np.flatnonzero(self._state_N == _HERE)
        used_N = self._used_N[found_N]
        may_N = used_N != self._pass
        if clean:
            may_N &= self._stored_N[found_N]
        found_N, used_N = found_N[may_N], used_N[may_N]
        key_N = np.where(used_N < self._ran_S[found_N // self.pages], used_N - _STALE, -used_N)
        count = -(-size // int(self.cut.sizes_S.min()))
        if count < len(found_N):
            first_N = np.argpartition(key_N, count)[:count]
            found_N, key_N = found_N[first_N], key_N[first_N]
        found_N = found_N[key_N.argsort(kind="stable")]
        before_N = self._sizes(found_N).cumsum() - self._sizes(found_N)
        return found_N[before_N < size]

    def _evict(self, parts_N: Parts) -> None:
        self._held -= int(self._sizes(parts_N).sum())
        self._state_N[parts_N] = _ABSENT
        starts_N = parts_N % self.pages * self.cut.page_bytes + self.cut.starts_S[parts_N // self.pages]
        order_N = starts_N.argsort()
        starts_N, ends_N = starts_N[order_N], (starts_N + self._sizes(parts_N))[order_N]
        apart_N = np.flatnonzero(starts_N[1:] != ends_N[:-1])
        firsts, lasts = np.append(0, apart_N + 1), np.append(apart_N, len(starts_N) - 1)
        if len(parts_N):
            for start, end in zip(starts_N[firsts].tolist(), ends_N[lasts].tolist(), strict=True):
                self._give_back(start, end - start)

    def _give_back(self, start: int, size: int) -> None:
        self._area.madvise(mmap.MADV_DONTNEED, start, size)

    def _take(self, parts_N: Parts, state: int = _HERE) -> None:
        self._state_N[parts_N] = state
        self._held += int(self._sizes(parts_N).sum())

    def _bring(self, parts_N: Parts) -> None:
        """Reads these, and waits for them."""
        if not len(parts_N):
            return
        self._take(parts_N, _COMING)
        self._start(parts_N, write=False)
        fault = self._land(False, wanted=parts_N)
        missing_N = parts_N[self._state_N[parts_N] == _ABSENT]
        if fault is not None and len(missing_N):
            self.lost.update((missing_N % self.pages).tolist())
            raise TierError(
                f"keys and values cannot be read back from where they lie ({fault.strerror}): the requests that "
                "run must be computed again"
            )

    def _send(self, parts_N: Parts) -> None:
        """Has these written."""
        if len(parts_N):
            self._state_N[parts_N] = _GOING
            self._start(parts_N, write=True)

    def _start(self, parts_N: Parts, *, write: bool) -> None:
        self._flights.append(_Flight(parts_N, self._backing.move(parts_N, write=write), write))

    def _land(self, write: bool, wanted: Parts | None = None) -> OSError | None:
        """Takes note of what was written, or read; waits for those that are wanted. Returns what went wrong."""
        state = _GOING if write else _COMING
        fault = None
        must = wanted is not None and bool((self._state_N[wanted] == state).any())
        flying, self._flights = self._flights, []
        for flight in flying:
            if flight.write != write or not (must or all(work.done() for work in flight.work)):
                self._flights.append(flight)
                continue
            wait(flight.work)
            error = next((e for work in flight.work if (e := work.exception()) is not None), None)
            if error is not None and not isinstance(error, OSError):
                raise error
            fault = fault or error
            self._landed(flight, error)
        return fault

    def _landed(self, flight: _Flight, error: OSError | None) -> None:
        parts_N = flight.parts_N
        if flight.write:
            self._state_N[parts_N] = _HERE
            self._stored_N[parts_N] = error is None
            if error is not None and self._fault is None:
                self._fault = error
                _log.warning(
                    "keys and values cannot be written to where they lie (%s): they stay in memory as long as there "
                    "is room",
                    error.strerror,
                )
        elif error is None:
            self._state_N[parts_N] = _HERE
        else:
            self._evict(parts_N)

    def _sizes(self, parts_N: Parts) -> Parts:
        sizes_N: Parts = self.cut.sizes_S[parts_N // self.pages]
        return sizes_N
