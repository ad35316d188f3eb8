"""The ring: what is needed is in its seat while it is needed, in any order; and what comes next is fetched ahead."""

from __future__ import annotations

import gc
import random
import threading
from collections import Counter

import pytest

from headrace.weight.ring import Ring


class Seats:
    """What lies where, and who is told to wait."""

    def __init__(self, seats: dict[int, int]) -> None:
        self.seats, self.lies = seats, dict.fromkeys(seats.values(), -1)
        self.fetched: list[int] = []
        self.in_use: int | None = None
        self.wrong: list[str] = []
        self.failing: set[int] = set()
        self.told = threading.Condition()

    def fetch(self, run: int) -> None:
        seat = self.seats[run]
        if self.in_use is not None and self.seats[self.in_use] == seat:
            self.wrong.append(f"{run} was fetched over {self.in_use}")
        if run in self.failing:
            raise OSError(f"cannot fetch {run}")
        with self.told:
            self.lies[seat] = run
            self.fetched.append(run)
            self.told.notify_all()

    def wait_until(self, count: int) -> None:
        """Until so many have been fetched."""
        with self.told:
            assert self.told.wait_for(lambda: len(self.fetched) >= count, timeout=30), self.fetched


def use(ring: Ring, seats: Seats, run: int | None) -> None:
    seats.in_use = None
    ring.need(run)
    if run in seats.seats:
        seats.in_use = run
        assert seats.lies[seats.seats[run]] == run


def test_passes_fetch_each_run_once_and_ahead() -> None:
    seats = Seats({0: 0, 1: 1, 4: 0, 6: 0, 7: 1, 9: 1, 10: 0})
    ring = Ring(seats.seats, seats.fetch)
    seats.wait_until(2)  # before anybody asks
    for _ in range(3):
        for run in (*range(12), None):
            use(ring, seats, run)
    seats.wait_until(3 * 7 + 2)
    assert not seats.wrong
    assert Counter(seats.fetched) == {run: 3 + (run in (0, 1)) for run in seats.seats}


@pytest.mark.parametrize("seed", range(6))
def test_any_order_is_right(seed: int) -> None:
    draw = random.Random(seed)
    seats = Seats({run: draw.randrange(3) for run in sorted(draw.sample(range(20), draw.randrange(1, 9)))})
    ring = Ring(seats.seats, seats.fetch)
    for _ in range(600):
        use(ring, seats, draw.choice([*range(20), None]))
    assert not seats.wrong


def test_one_that_cannot_be_fetched_is_tried_again() -> None:
    seats = Seats({0: 0, 1: 1, 2: 0, 3: 1})
    seats.failing = {2}
    ring = Ring(seats.seats, seats.fetch)
    use(ring, seats, 0)
    use(ring, seats, 1)
    for _ in range(2):
        with pytest.raises(OSError, match="cannot fetch 2"):
            use(ring, seats, 2)
    seats.failing = set()
    for run in (0, 1, 2, 3, 0, 1):
        use(ring, seats, run)
    assert not seats.wrong


def test_the_thread_ends_with_the_ring() -> None:
    before = set(threading.enumerate())
    seats = Seats({0: 0, 1: 1})
    ring = Ring(seats.seats, seats.fetch)
    use(ring, seats, 1)
    [thread] = set(threading.enumerate()) - before
    del ring
    gc.collect()
    thread.join(timeout=30)
    assert not thread.is_alive()
