"""Memory that several runs of bytes share, one after the other in a fixed order, filled ahead by a thread.

Each run has its *seat*, and always the same: so what is made of its bytes keeps its address. While one seat is in use,
the thread fills the others with what comes next; after the last run comes the first.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping


class Ring:
    """Says what is needed; a thread of its own fetches it. Ends when nobody holds it."""

    def __init__(self, seats: Mapping[int, int], fetch: Callable[[int], None]) -> None:
        """seats: run -> its seat, in the order in which runs are needed. fetch: fills the run's seat with it, in the
        thread."""
        self._thread = _Fetcher(dict(seats), fetch)
        weakref.finalize(self, self._thread.stop)
        threading.Thread(target=self._thread.work, name="weights", daemon=True).start()

    def need(self, run: int | None) -> None:
        """Returns when the run is in its seat, and keeps it there until the next call. None, or one that has no seat:
        nothing need stay. Raises what fetching the run raised; it is tried again when next needed.
        """
        self._thread.need(run)


class _Fetcher:
    """What the thread and those who need runs share, under one lock."""

    def __init__(self, seats: dict[int, int], fetch: Callable[[int], None]) -> None:
        self._seats, self._fetch = seats, fetch
        self._order = list(seats)
        self._place = {run: place for place, run in enumerate(self._order)}
        self._wanted: dict[int, int] = {}
        """Seat -> the run that is or shall be there."""
        self._held: dict[int, int] = {}
        """Seat -> the run that is there."""
        self._failed: dict[int, Exception] = {}
        self._now: int | None = None
        """In use."""
        self._at = 0
        """Place of the last run that was in use."""
        self._changed = threading.Condition()
        self._ended = False
        self._look_ahead()

    def need(self, run: int | None) -> None:
        with self._changed:
            if self._now is not None:
                self._wanted[self._seats[self._now]] = self._next(
                    self._place[self._now] + 1, self._seats[self._now]
                )
                self._now = None
            if run in self._seats:
                self._now, self._at = run, self._place[run]
                self._look_ahead()  # mostly, nothing changes: unless runs were left out, or it begins anew
                self._failed.pop(run, None)  # ahead of time; now it counts
            self._changed.notify_all()
            if run in self._seats:
                self._wait_for(run)

    def _wait_for(self, run: int) -> None:
        while self._held.get(self._seats[run]) != run:
            if run in self._failed:
                self._now = None
                raise self._failed.pop(run)
            self._changed.wait()

    def work(self) -> None:
        """The thread."""
        while True:
            with self._changed:
                while not self._ended and self._most_urgent() is None:
                    self._changed.wait()
                run = self._most_urgent()
                if self._ended or run is None:
                    return
                self._held.pop(self._seats[run], None)
            try:
                self._fetch(run)
                failure = None
            except Exception as error:  # for whoever needs the run: nobody sees what a thread raises
                failure = error
            with self._changed:
                if failure is None:
                    self._held[self._seats[run]] = run
                else:
                    self._failed[run] = failure
                self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _look_ahead(self) -> None:
        """Every seat shall have the first of its runs from here on."""
        for seat in set(self._seats.values()):
            self._wanted[seat] = self._next(self._at, seat)

    def _next(self, place: int, seat: int) -> int:
        """The seat's first run at this place or after it, round and round."""
        ahead = (self._order[(place + i) % len(self._order)] for i in range(len(self._order)))
        return next(run for run in ahead if self._seats[run] == seat)

    def _most_urgent(self) -> int | None:
        """Of the runs that are not where they shall be, the one that is needed first."""
        missing = [
            run
            for seat, run in self._wanted.items()
            if self._held.get(seat) != run and run not in self._failed
        ]
        return min(missing, key=lambda run: (self._place[run] - self._at) % len(self._order), default=None)
