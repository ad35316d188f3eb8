"""How what rows read is cut into runs of pages."""

from __future__ import annotations

from collections.abc import Iterator

from headrace.kv.branches import Stretch
from headrace.kv.chunks import Chunks
from headrace.kv.groups import GroupSpec, Interval
from headrace.kv.pool import FREED


def apart(intervals: tuple[Interval, ...], size: int) -> tuple[Interval, ...]:
    """The same, as one where they meet in a page: runs do not overlap, and a query masks what lies between."""
    if len(intervals) < 2 or -(-intervals[0][1] // size) <= intervals[1][0] // size:
        return intervals
    return ((intervals[0][0], intervals[1][1]),)


def alike(part: Stretch, spec: GroupSpec, chunks: Chunks) -> Iterator[tuple[int, int]]:
    """[first, end) of the positions that see the same blocks and chunks."""
    first = part.start
    while first < part.stop:
        limit = spec.alike(first)
        end = chunks.end(first, part.stop)
        end = end if limit is None else min(end, limit)
        yield first, end
        first = end


def live_runs(pages: list[int], first: int, last: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of each stretch of pages in [first, last) that were not freed."""
    start = first
    for _ in range(pages[first:last].count(FREED)):
        hole = pages.index(FREED, start)
        if start < hole:
            yield start, hole
        start = hole + 1
    if start < last:
        yield start, last
