"""Queues: every living sequence by status, and the frozen picture of them that a policy plans from.

Order, everywhere: (priority, arrival, id). The first of the running sequences is the last to give way.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

from headrace.kv.holding import Holding
from headrace.kv.reuse import namespace, reusable
from headrace.kv.tables import BlockTables
from headrace.types import Sequence, Status

Order = tuple[int, float, int]


@dataclass(frozen=True, slots=True)
class SeqView:
    """Everything a policy may know of a sequence."""

    id: int
    priority: int
    arrival: float
    status: Status
    length: int
    """Tokens known: prompt and output so far."""
    prompt_len: int
    holding: Holding
    """What it has, or would have the moment it is admitted (prefix hit, pages brought back)."""

    @property
    def order(self) -> Order:
        return self.priority, self.arrival, self.id

    @property
    def computed(self) -> int:
        return self.holding.computed

    @property
    def remaining(self) -> int:
        """Tokens to run before it yields its next one: 1 while decoding."""
        return self.length - self.holding.computed


@dataclass(frozen=True)
class CacheView:
    """Everything a policy may know of the KV pool. Its numbers hold while one plan is made."""

    page_tokens: tuple[int, ...]
    """Tokens per page, per group."""
    windows: tuple[int | None, ...]
    """Most tokens that stay behind the newest, per group; None for all."""
    available: int
    """Pages that are free, or that only the prefix cache holds."""
    total: int
    host_free: int | None
    """Free pages of host memory; None when paused sequences are recomputed."""
    freed_by: Callable[[Iterable[int]], int]
    """Pages that become available if all of these sequences are paused."""
    sinks: tuple[int, ...] = ()
    """First tokens that stay as well, per group; () for none."""
    stored: tuple[Callable[[int], int], ...] = ()
    """Where what is stored ends when the positions before this one are computed, per group; () for there."""

    def need(self, holding: Holding, stop: int) -> int:
        """Pages taken out of `available` when a sequence with this holding runs up to `stop`."""
        return sum(self._grows(holding, stop)) + holding.copies + holding.brings

    def reach(self, holding: Holding, stop: int, chunk: int) -> int:
        """The most pages ever taken out of `available` on the way to `stop` in spans of at most `chunk` tokens:
        groups with a window free pages behind them as they go."""
        pages = 0
        sinks = self.sinks or (0,) * len(self.windows)
        for tokens, window, sink, grow, live in zip(
            self.page_tokens, self.windows, sinks, self._grows(holding, stop), holding.live, strict=True
        ):
            # window, chunk, one token of slack for forks, and a page cut at either end; and the sink's pages
            most = 0 if window is None else -(-(window + chunk + 1) // tokens) + 1 - (-sink // tokens)
            cap = grow if window is None else max(0, most - live)
            pages += min(grow, cap)
        return pages + holding.copies + holding.brings

    def _grows(self, holding: Holding, stop: int) -> list[int]:
        """Pages that each group's table grows by on the way to `stop`."""
        stops = [stored(stop) for stored in self.stored] or [stop] * len(self.page_tokens)
        triples = zip(self.page_tokens, holding.listed, stops, strict=True)
        return [max(0, -(-end // tokens) - listed) for tokens, listed, end in triples]


@dataclass(frozen=True)
class Budget:
    """What one step may use at most."""

    max_seqs: int
    """Sequences running at once."""


@dataclass(frozen=True)
class View:
    """The frozen picture: a policy is a pure function of it."""

    running: tuple[SeqView, ...]
    """In order; they hold pages."""
    candidates: Iterable[SeqView]
    """Waiting and swapped sequences, in order. Iterating costs a prefix look-up each: stop at the first misfit."""
    cache: CacheView
    resting: tuple[SeqView, ...] = ()
    """In order; they hold pages, and run nothing until their turn comes (headrace/forward/lane.py)."""


class Queues:
    """Every living sequence. Holds no policy: where a sequence is, its status says."""

    def __init__(self) -> None:
        self._all: dict[int, Sequence] = {}
        self._orders: list[Order] = []  # of all but held sequences, sorted

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, seq: int) -> Sequence:
        return self._all[seq]

    def __contains__(self, seq: int) -> bool:
        return seq in self._all

    @property
    def sequences(self) -> Mapping[int, Sequence]:
        return self._all

    def add(self, seq: Sequence) -> None:
        self._all[seq.id] = seq
        bisect.insort(self._orders, _order(seq))

    def remove(self, seq: int) -> None:
        order = _order(self._all.pop(seq))
        del self._orders[bisect.bisect_left(self._orders, order)]

    def count(self, *statuses: Status) -> int:
        return sum(seq.status in statuses for seq in self._all.values())

    def waiting(self) -> list[Sequence]:
        """Those that may be admitted, in order."""
        ordered = (self._all[order[2]] for order in self._orders)
        return [seq for seq in ordered if seq.status in (Status.WAITING, Status.SWAPPED)]

    def admissible(self) -> Iterator[Sequence]:
        """Those of them whose adapters are there. Behind one whose adapter does not fit, none with an adapter begins:
        it would keep that one out."""
        crowded = False
        for seq in self.waiting():
            if seq.adapter is None or seq.status is Status.SWAPPED:
                yield seq
            elif seq.adapter.crowded:
                crowded = True
            elif seq.adapter.ready and not crowded:
                yield seq

    def view(
        self,
        tables: BlockTables,
        swap: bool,
        unready: Set[int] = frozenset(),
        away: Set[int] = frozenset(),
    ) -> View:
        """The picture for one plan. unready: sequences that shall not be admitted now; away: nor run."""
        ordered = [self._all[order[2]] for order in self._orders]
        holders = [
            _view(seq, tables.holding(seq.id, seq.num_computed))
            for seq in ordered
            if seq.status is Status.RUNNING
        ]
        running = tuple(seq for seq in holders if seq.id not in away)
        resting = tuple(seq for seq in holders if seq.id in away)
        cache = CacheView(
            page_tokens=tables.sizes.tokens,
            windows=tuple(group.behind for group in tables.groups),
            available=tables.available,
            total=len(tables.pool),
            host_free=tables.host.num_free if swap and tables.host is not None else None,
            freed_by=tables.freed_by,
            sinks=tuple(group.sink for group in tables.groups),
            stored=tuple(group.stored for group in tables.groups),
        )
        waiting = [seq for seq in self.admissible() if seq.id not in unready and seq.id not in away]
        return View(running, _Candidates(waiting, tables), cache, resting)


class _Candidates:
    """Views of waiting sequences, each made when it is asked for."""

    def __init__(self, waiting: list[Sequence], tables: BlockTables) -> None:
        self._waiting = waiting
        self._tables = tables

    def __iter__(self) -> Iterator[SeqView]:
        for seq in self._waiting:
            if seq.status is Status.SWAPPED:
                holding = self._tables.swapped_holding(seq.id, seq.num_computed)
            else:
                holding = self._tables.hit(reusable(seq, self._tables.prompts_only), namespace(seq))
            yield _view(seq, holding)


def _view(seq: Sequence, holding: Holding) -> SeqView:
    return SeqView(
        id=seq.id,
        priority=seq.request.priority,
        arrival=seq.request.arrival,
        status=seq.status,
        length=len(seq.tokens),
        prompt_len=seq.prompt_len,
        holding=holding,
    )


def _order(seq: Sequence) -> Order:
    return seq.request.priority, seq.request.arrival, seq.id
