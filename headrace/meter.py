"""Measuring: how long, how much memory, and how far a run has come."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

SHOW_AFTER_S = 2.0
"""Shorter runs show no progress bar."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeated measurements of one thing."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median, smallest and largest of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def __format__(self, spec: str) -> str:
        """As tables show it, `spec` for each number: 29.0 (27.1-34.2)."""
        return f"{self.median:{spec}} ({self.low:{spec}}-{self.high:{spec}})"


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, between neighbours in proportion."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def peak_rss_bytes() -> int:
    """Most memory that this process has held so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class ProgressBar:
    """A bar on stderr for runs longer than two seconds; invisible if stderr is no terminal. A context manager."""

    def __init__(self, total: int | None, what: str, *, on: bool | None = None) -> None:
        """`on`: True shows it at once and anywhere, False never, None on a terminal after two seconds."""
        self._total = total
        self._what = what
        self._on = sys.stderr.isatty() if on is None else on
        self._show_at = time.monotonic() + (0 if on else SHOW_AFTER_S)
        self._done = 0
        self._bar: Progress | None = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """`count` more of the total are done; 0 only gives the bar a chance to appear."""
        self.update(self._done + count, self._total)

    def update(self, done: int, total: int | None) -> None:
        """`done` of `total` are done."""
        self._done, self._total = done, total
        if self._bar is None and self._on and time.monotonic() >= self._show_at:
            self._bar = self._start()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def _start(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn(self._what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        bar.add_task(self._what, total=self._total)
        bar.start()
        return bar
