"""Ledger: who gets pages, who is let in, and who gives way."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from headrace.kv.tables import Holding
from headrace.schedule.admission import Ledger
from headrace.schedule.queues import Budget, CacheView, SeqView, View
from headrace.types import Span, Status

SIZE = 4
"""Tokens per page of the one group."""


def seq(id: int, computed: int, length: int, *, status: Status = Status.RUNNING, **holding: int) -> SeqView:
    pages = -(-computed // SIZE)
    return SeqView(
        id=id,
        priority=0,
        arrival=float(id),
        status=status,
        length=length,
        prompt_len=length,
        holding=Holding(computed, (pages,), (pages,), **holding),
    )


def waiting(id: int, length: int, *, computed: int = 0, **holding: int) -> SeqView:
    return seq(id, computed, length, status=Status.WAITING, **holding)


def ledger(
    running: Iterable[SeqView], available: int, *, host: int | None = None, max_seqs: int = 8
) -> Ledger:
    held = {s.id: sum(s.holding.live) for s in running}
    cache = CacheView(
        page_tokens=(SIZE,),
        windows=(None,),
        available=available,
        total=available + sum(held.values()),
        host_free=host,
        freed_by=lambda seqs: sum(held[s] for s in seqs),
    )
    return Ledger(View(tuple(running), (), cache), Budget(max_seqs=max_seqs))


# ---- need and reach ----


def test_need_counts_new_pages_copies_and_what_admission_brings() -> None:
    view = CacheView(
        page_tokens=(4, 8), windows=(None, 6), available=9, total=9, host_free=None, freed_by=lambda seqs: 0
    )
    assert view.need(Holding(0, (0, 0), (0, 0)), 9) == 3 + 2
    assert view.need(Holding(8, (2, 1), (2, 1)), 8) == 0
    assert view.need(Holding(8, (2, 1), (2, 1)), 9) == 2
    assert view.need(Holding(6, (2, 1), (2, 1), copies=2), 7) == 2
    assert view.need(Holding(8, (2, 1), (2, 1), brings=3), 9) == 2 + 3


def test_reach_is_bounded_where_a_window_slides() -> None:
    view = CacheView(
        page_tokens=(4, 4), windows=(None, 6), available=9, total=9, host_free=None, freed_by=lambda seqs: 0
    )
    fresh = Holding(0, (0, 0), (0, 0))
    assert view.reach(fresh, 100, chunk=1) == 25 + 3, "a window of 6, the chunk, one of slack, and a cut page"
    assert view.reach(fresh, 100, chunk=100) == 25 + 25
    assert view.reach(fresh, 5, chunk=1) == 2 + 2
    assert view.reach(Holding(40, (10, 10), (10, 2)), 100, chunk=1) == 15 + 1


# ---- run ----


def test_a_running_sequence_takes_what_it_needs() -> None:
    one = seq(1, 8, 9)
    book = ledger([one], available=1)
    assert book.run(one, 9)
    plan = book.plan("why")
    assert plan.spans == (Span(1, 8, 9),) and plan.reason == "why" and book.num_tokens == 1
    assert not plan.recompute and not plan.swap_out and not plan.swap_in


def test_the_last_in_order_gives_way() -> None:
    running = [seq(i, 8, 9) for i in (1, 2, 3)]
    book = ledger(running, available=0)
    assert book.run(running[0], 9)
    assert book.plan("").recompute == (3,) and not book.runs(running[2]) and book.runs(running[1])
    assert book.run(running[1], 9), "the two pages of the third serve both"
    assert book.plan("").recompute == (3,)


def test_whoever_comes_last_gives_way_itself() -> None:
    running = [seq(1, 8, 9), seq(2, 8, 9)]
    book = ledger(running, available=1)
    assert book.run(running[0], 9)
    assert not book.run(running[1], 9)
    plan = book.plan("")
    assert plan.recompute == (2,) and [span.seq for span in plan.spans] == [1]


def test_nobody_gives_way_to_one_that_comes_after() -> None:
    running = [seq(1, 8, 20), seq(2, 8, 9)]
    book = ledger(running, available=0)
    assert not book.run(running[1], 9)
    assert book.plan("").recompute == (2,)
    assert book.runs(running[0])


def test_the_first_in_order_gets_on_though_the_others_were_planned_before() -> None:
    """A policy may plan decodes first; a sequence that comes before them still has the first claim."""
    running = [seq(1, 8, 20), seq(2, 8, 9), seq(3, 8, 9)]
    book = ledger(running, available=2)
    assert book.run(running[1], 9) and book.run(running[2], 9)
    assert book.run(running[0], 12)
    plan = book.plan("")
    assert plan.recompute == (3,) and {span.seq for span in plan.spans} == {1, 2}


def test_paused_sequences_go_to_host_memory_while_it_lasts() -> None:
    running = [seq(1, 8, 30), seq(2, 8, 9), seq(3, 12, 13)]
    book = ledger(running, available=0, host=3)
    assert book.run(running[0], 8 + 4 * SIZE)
    plan = book.plan("")
    assert plan.swap_out == (3,) and plan.recompute == (2,)


# ---- admit ----


def test_a_newcomer_needs_room_for_all_it_knows() -> None:
    assert not ledger([], available=4).admit(waiting(1, 20), 4, chunk=4)
    book = ledger([], available=5)
    assert book.admit(waiting(1, 20), 4, chunk=4)
    assert book.plan("").spans == (Span(1, 0, 4),)


def test_running_sequences_keep_what_they_were_promised_and_a_page_to_grow() -> None:
    running = [seq(1, 8, 20)]  # three pages to go, and one to grow
    for available, fits in [(3 + 1 + 1, False), (3 + 1 + 2, True)]:
        book = ledger(running, available)
        assert book.run(running[0], 12)
        assert book.admit(waiting(2, 8), 8, chunk=8) is fits


def test_newcomers_count_against_each_other() -> None:
    book = ledger([], available=5)
    assert book.admit(waiting(1, 8), 4, chunk=8)
    assert not book.admit(waiting(2, 12), 12, chunk=12), (
        "one page of the first is still to come, and one to grow"
    )
    book = ledger([], available=7)
    assert book.admit(waiting(1, 8), 4, chunk=8) and book.admit(waiting(2, 12), 12, chunk=12)


def test_a_hit_costs_what_it_pins() -> None:
    cached = waiting(1, 20, computed=16, brings=4)
    assert not ledger([], available=4).admit(cached, 20, chunk=4)
    book = ledger([], available=5)
    assert book.admit(cached, 20, chunk=4)
    assert book.plan("").spans == (Span(1, 16, 20),)


def test_newcomers_pause_nobody_and_wait_while_somebody_is_paused() -> None:
    running = [seq(1, 8, 9), seq(2, 40, 41)]
    book = ledger(running, available=0)
    assert book.run(running[0], 9)
    assert book.plan("").recompute == (2,)
    assert not book.admit(waiting(3, 4), 4, chunk=4), "ten pages are free, and were taken from somebody"


@pytest.mark.parametrize("limit", [1, 2])
def test_no_more_than_the_limit_run_at_once(limit: int) -> None:
    book = ledger([seq(1, 4, 5)], available=50, max_seqs=limit)
    assert book.admit(waiting(2, 4), 4, chunk=4) is (limit == 2)
    assert not book.admit(waiting(3, 4), 4, chunk=4)


def test_a_swapped_newcomer_comes_back() -> None:
    away = seq(1, 8, 9, status=Status.SWAPPED, brings=2)
    assert not ledger([], available=2).admit(away, 9, chunk=1)
    book = ledger([], available=3)
    assert book.admit(away, 9, chunk=1)
    plan = book.plan("")
    assert plan.swap_in == (1,) and plan.spans == (Span(1, 8, 9),)
