"""What is needed is in memory, as it was written, and never more than may be; what is missed last goes first."""

from __future__ import annotations

import mmap
import random
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from headrace.errors import ConfigError, TierError
from headrace.kv.pool import PagePool
from headrace.kv.residence import Parts, Residence
from headrace.kv.stored import Cut, Strip
from headrace.weight.memory import PAGE

PAGES, HEADS, LAYERS = 6, 2, 4
STRIPS = [Strip(0, i // HEADS, slice(i * PAGE, (i + 1) * PAGE)) for i in range(HEADS * LAYERS)]
CUT = Cut(9 * PAGE, tuple(STRIPS), (slice(8 * PAGE, 9 * PAGE),))


class Shelf:
    """A tier in memory; moves are done at once, or in threads."""

    unit = PAGE

    def __init__(self, memory: int, threads: ThreadPoolExecutor | None = None) -> None:
        self.memory_bytes, self._threads = memory, threads
        self.kept: dict[int, bytes] = {}
        self.moves: list[tuple[list[int], bool]] = []
        self.written = self.read = 0
        self.fails: dict[bool, bool] = {False: False, True: False}

    def back(self, arena_PX: Tensor, cut: Cut) -> Shelf:
        self._arena_PX, self._cut = arena_PX, cut
        return self

    def move(self, parts_N: Parts, *, write: bool) -> list[Future[None]]:
        self.moves.append((sorted(parts_N.tolist()), write))
        if self._threads is not None:
            return [self._threads.submit(self._move, half, write) for half in np.array_split(parts_N, 2)]
        done: Future[None] = Future()
        try:
            done.set_result(self._move(parts_N, write))
        except OSError as error:
            done.set_exception(error)
        return [done]

    def _move(self, parts_N: Parts, write: bool) -> None:
        if self.fails[write]:
            raise OSError(28, "full")
        for part in parts_N.tolist():
            held_X = self._arena_PX[part % PAGES, self._cut.strips[part // PAGES].place]
            if write:
                self.kept[part] = held_X.numpy().tobytes()
            else:
                held_X.copy_(torch.frombuffer(bytearray(self.kept[part]), dtype=torch.uint8))

    def close(self) -> None: ...


def made(rooms: int, threads: ThreadPoolExecutor | None = None) -> tuple[Residence, Shelf]:
    """With room for so many parts."""
    shelf = Shelf(PAGES * PAGE + rooms * PAGE, threads)
    return Residence(CUT, PAGES, shelf), shelf


def layer(number: int, *pages: int, heads: int = HEADS) -> Parts:
    return np.array([(number * HEADS + head) * PAGES + page for head in range(heads) for page in pages])


def bytes_of(residence: Residence, part: int) -> Tensor:
    return residence.arena_PX[part % PAGES, CUT.strips[part // PAGES].place]


def in_memory(residence: Residence) -> int:
    """Bytes of the arena that exist, as the system says."""
    address = residence.arena_PX.data_ptr()
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.startswith(f"{address:x}-"):
            return next(int(each.split()[1]) << 10 for each in lines if each.startswith("Rss:"))
    raise AssertionError("no such mapping")


@pytest.mark.parametrize("rooms", [12, 13, 20, 40])
def test_what_is_written_is_what_is_read(rooms: int) -> None:
    """Against a dictionary, over random passes in and out of turn."""
    threads = ThreadPoolExecutor(2)
    draw, (residence, shelf), known = random.Random(rooms), made(rooms, threads), dict[int, int]()
    for number in range(600):
        own = draw.randrange(LAYERS)
        pages = draw.sample(range(PAGES), draw.randint(1, 3))
        match draw.randrange(7):
            case 0 | 1:
                parts = layer(own, *pages)
                residence.need(own, parts, write=True)
                for part in parts.tolist():
                    bytes_of(residence, part).fill_(number % 251)
                    known[part] = number % 251
                residence.whole(parts[: draw.randint(0, len(parts))])
            case 2 | 3 | 4:
                parts = np.array([part for part in layer(own, *range(PAGES)).tolist() if part in known], int)
                residence.need(own, parts)
                for part in parts.tolist():
                    assert bool((bytes_of(residence, part) == known[part]).all()), f"part {part} changed"
                residence.ahead(range(own * HEADS, own * HEADS + HEADS))
            case 5:
                residence.drop(pages[0])
                known = {part: value for part, value in known.items() if part % PAGES != pages[0]}
            case _:
                source, target = draw.sample(range(PAGES), 2)
                residence.drop(target)
                residence.arena_PX[source, CUT.known[0]] = number % 251
                residence.copy(source, target)
                known = {part: value for part, value in known.items() if part % PAGES != target}
                copied = {p - source + target: v for p, v in known.items() if p % PAGES == source}
                known |= copied
                if copied:
                    assert bool((residence.arena_PX[target, CUT.known[0]] == number % 251).all())
        residence.check()
        if number % 40 == 0:  # the system takes its time
            assert in_memory(residence) <= shelf.memory_bytes
    threads.shutdown()
    assert any(write for _, write in shelf.moves) and any(not write for _, write in shelf.moves)


def test_what_is_missed_last_goes_first() -> None:
    """Layers come round: 0, 1, 2, 3, 0. After the second pass of 0, layer 3 ran last."""
    residence, shelf = made(16)
    for own in range(4):
        residence.need(own, layer(own, 0, 1), write=True)
        residence.whole(layer(own, 0, 1))
    residence.need(0, layer(0, 0))  # its page 1 is left out, but the pass is not over
    assert len(shelf.moves) == 4, "all of it fits"
    residence.need(1, layer(1, 0), write=True)
    gone = []
    for page in (2, 3, 4, 5):
        before = residence._state_N.copy()
        residence.need(1, layer(1, page, heads=1), write=True)
        gone += np.flatnonzero((before != 0) & (residence._state_N == 0)).tolist()
    stale, last = layer(0, 1).tolist(), layer(0, 0).tolist()
    assert sorted(gone[:2]) == stale, "what layer 0 left out goes first"
    assert sorted(gone[2:]) == last, "then what ran last, and is needed last"
    before = residence._state_N.copy()
    residence.need(1, layer(1, 2, 3), write=True)
    gone = np.flatnonzero((before != 0) & (residence._state_N == 0)).tolist()
    assert set(gone) < set(layer(3, 0, 1).tolist()), "layer 2 comes before layer 3"


def test_the_next_layers_parts_are_read_ahead() -> None:
    residence, shelf = made(16)
    for _ in range(2):
        for own in range(4):
            residence.need(own, layer(own, 0, 1, 2), write=True)
            residence.whole(layer(own, 0, 1, 2))
    absent = np.flatnonzero(residence._stored_N & (residence._state_N == 0))
    target = next(own for own in (1, 2) if set(layer(own, 0, 1, 2).tolist()) & set(absent.tolist()))
    lacking = sorted(set(layer(target, 0, 1, 2).tolist()) & set(absent.tolist()))
    shelf.moves.clear()
    residence.ahead(range(target * HEADS, target * HEADS + HEADS))
    assert shelf.moves[-1] == (lacking, False)
    shelf.moves.clear()
    residence.need(target, layer(target, 0, 1, 2))
    assert shelf.moves == [], "nothing is read twice"
    residence.check()


def test_nothing_is_written_twice() -> None:
    residence, shelf = made(12)
    residence.need(0, layer(0, 0, 1), write=True)
    residence.whole(layer(0, 0, 1))
    for own in (1, 2, 3):
        residence.need(own, layer(own, *range(5)), write=True)
    written = [part for parts, write in shelf.moves if write for part in parts]
    assert len(written) == len(set(written)) and set(layer(0, 0, 1).tolist()) <= set(written)


def test_a_tier_that_takes_nothing_loses_nothing() -> None:
    residence, shelf = made(16)
    residence.need(0, layer(0, 0, 1), write=True)
    residence.whole(layer(0, 0, 1))
    bytes_of(residence, 0).fill_(7)
    shelf.fails[True] = True
    residence.need(1, layer(1, *range(5)), write=True)
    residence.whole(layer(1, *range(5)))
    bytes_of(residence, int(layer(1, 0)[0])).fill_(9)
    residence.need(2, layer(2, 0, 1), write=True)  # in the room of layer 0, which is written
    with pytest.raises(TierError, match="cannot be written .*full.* free room there"):
        residence.need(3, layer(3, 0, 1, 2), write=True)
    residence.check()
    residence.need(1, layer(1, 0))
    assert bool((bytes_of(residence, int(layer(1, 0)[0])) == 9).all()), "what could not be written is here"
    shelf.fails[True] = False
    residence.need(3, layer(3, 0, 1, 2), write=True)
    residence.check()


def test_what_cannot_be_read_is_lost_until_its_page_is_free() -> None:
    residence, shelf = made(12)
    for own in (0, 1, 2):
        residence.need(own, layer(own, *range(4)), write=True)
    shelf.fails[False] = True
    residence.ahead(range(HEADS))  # what is read in vain ahead of time says nothing
    assert not residence.lost
    with pytest.raises(TierError, match="cannot be read back"):
        residence.need(0, layer(0, *range(4)))
    assert residence.lost and residence.lost <= {0, 1, 2, 3}
    residence.check()
    for page in range(4):
        residence.drop(page)
    assert not residence.lost and residence._held == 0


def test_sizes_are_checked_at_the_start() -> None:
    with pytest.raises(ConfigError, match=f"raise memory to that, or lower kv_bytes to {5 * 9 * PAGE}"):
        Residence(CUT, PAGES, Shelf(PAGES * CUT.least - 1))
    with pytest.raises(ConfigError, match="leave --kv-tier out"):
        Residence(CUT, PAGES, Shelf(PAGES * CUT.page_bytes))
    assert CUT.least == 3 * PAGE and mmap.PAGESIZE == PAGE


def test_a_copy_that_fails_lets_go_of_its_page() -> None:
    residence, shelf = made(12)
    pool = PagePool(PAGES, CUT.page_bytes, torch.device("cpu"), residence=residence)
    source, target = pool.take(), pool.take()
    residence.need(0, layer(0, source), write=True)
    for own in (1, 2):
        residence.need(own, layer(own, *range(PAGES)), write=True)
    shelf.fails[False] = True
    with pytest.raises(TierError, match="cannot be read back"):
        pool.copy(source, target)
    assert pool.num_free == PAGES - 1 and pool.lost
    pool.check({0: [[source]]}, [])
    pool.drop(source)
    assert not pool.lost
