"""Queues: where everybody stands, and the picture that a policy is shown."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from headrace.kv.groups import GroupSpec, Member, PageSizes
from headrace.kv.pool import PagePool
from headrace.kv.prefix import PrefixTree
from headrace.kv.tables import BlockTables
from headrace.params import SamplingParams
from headrace.schedule.queues import Queues
from headrace.types import Request, Sequence, Status

CPU = torch.device("cpu")


def tables(host: int | None = 4) -> BlockTables:
    pool = PagePool(8, 64, CPU)
    return BlockTables(
        pool,
        None if host is None else PagePool(host, 64, CPU),
        [GroupSpec("g", (Member(0, (0,), 1),), 9)],
        PageSizes(64, (2,), 2),
        PrefixTree(pool, 2, (9,), "stack"),
    )


def seq(
    id: int, *, arrival: float = 0.0, priority: int = 0, status: Status = Status.WAITING, **params: int
) -> Sequence:
    request = Request(
        id=f"r{id}",
        prompt=(1, 2, 3, 4, 5),
        params=SamplingParams(**params),
        arrival=arrival,
        priority=priority,
    )
    return Sequence(
        id=id, request=request, index=0, seed=0, tokens=[1, 2, 3, 4, 5], prompt_len=5, status=status
    )


def filled(*sequences: Sequence) -> Queues:
    queues = Queues()
    for sequence in sequences:
        queues.add(sequence)
    return queues


def test_order_is_priority_then_arrival_then_id() -> None:
    queues = filled(
        seq(1, arrival=5),
        seq(4, arrival=1, priority=2),
        seq(3, arrival=1),
        seq(2, arrival=1),
        seq(5, arrival=9, priority=-1),
    )
    assert [view.id for view in queues.view(tables(), swap=False).candidates] == [5, 2, 3, 1, 4]


def test_add_and_remove() -> None:
    queues = filled(*(seq(i, arrival=-i) for i in range(6)))
    for id in (3, 0, 5):
        queues.remove(id)
    assert len(queues) == 3 and 3 not in queues and 4 in queues and queues[4].id == 4
    assert {s.id for s in queues} == {1, 2, 4} == set(queues.sequences)
    assert [view.id for view in queues.view(tables(), swap=False).candidates] == [4, 2, 1]
    assert queues.count(Status.WAITING) == 3 and queues.count(Status.RUNNING, Status.HELD) == 0


def test_the_picture_shows_each_where_it_is() -> None:
    book = tables()
    waiting, running, away = seq(1), seq(2, status=Status.RUNNING), seq(3, status=Status.SWAPPED)
    held = seq(4, status=Status.HELD)
    for other in (running, away):
        book.admit(other.id, other.tokens, "")
        book.reserve(other.id, 0, 5)
        book.advance(other.id, other.tokens, 5)
        other.num_computed = 5
    book.swap_out(3)
    view = filled(waiting, running, away, held).view(book, swap=True)
    assert (
        [s.id for s in view.running] == [2]
        and view.running[0].computed == 5
        and view.running[0].remaining == 0
    )
    first, second = list(view.candidates)
    assert (first.id, first.computed, first.remaining, first.holding.brings) == (1, 4, 1, 0)
    assert (second.id, second.status, second.computed, second.holding.brings) == (3, Status.SWAPPED, 5, 3)
    assert list(view.candidates) == [first, second], "the picture can be looked at twice"
    assert view.cache.available == 5 and view.cache.total == 8 and view.cache.host_free == 1
    assert view.cache.page_tokens == (2,) and view.cache.windows == (9,)
    assert view.cache.freed_by([2]) == 3


def test_host_memory_shows_only_where_pages_may_move_there() -> None:
    assert filled().view(tables(), swap=False).cache.host_free is None
    assert filled().view(tables(host=None), swap=True).cache.host_free is None
    assert filled().view(tables(), swap=True).cache.host_free == 4


def test_candidates_are_looked_up_one_by_one() -> None:
    """A prefix look-up costs: a policy that stops early pays for no more."""
    book, queues = tables(), filled(*(seq(i) for i in range(5)))
    asked: list[int] = []
    hit: Callable[..., object] = book.hit
    book.hit = lambda *args: asked.append(1) or hit(*args)
    candidates = iter(queues.view(book, swap=False).candidates)
    next(candidates), next(candidates)
    assert len(asked) == 2


@pytest.mark.parametrize(("scored", "computed"), [(1, 0), (2, 0), (3, 2), (4, 2), (5, 4)])
def test_a_prompt_that_is_to_be_scored_uses_the_cache_up_to_what_was_scored(
    scored: int, computed: int
) -> None:
    book = tables()
    book.admit(9, [1, 2, 3, 4, 5], "")
    book.reserve(9, 0, 5)
    book.advance(9, [1, 2, 3, 4, 5], 5)
    sequence = seq(1, prompt_logprobs=0)
    sequence.num_scored = scored
    (view,) = filled(sequence).view(book, swap=False).candidates
    assert view.computed == computed
