"""Every keeper keeps what may be read next, drops for good, and says so the same way each time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kv.groups import GroupSpec, Member, PageSizes
from headrace.kv.keepers import SLOT, Interval
from headrace.kv.pool import FREED, PagePool
from headrace.kv.tables import BlockTables
from tests.kv.contract import members

groups = st.builds(
    GroupSpec,
    st.just("group"),
    st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True).map(
        lambda layers: tuple(Member(layer, (0, 1), 16) for layer in layers)
    ),
    st.none() | st.integers(1, 40),
)
lengths = st.lists(st.integers(1, 300), min_size=2, max_size=8, unique=True).map(sorted)
"""Numbers of computed tokens after successive steps of one sequence."""


def positions(intervals: tuple[Interval, ...]) -> set[int]:
    return {p for start, stop in intervals for p in range(start, stop)}


@pytest.mark.parametrize("name", members(SLOT))
@settings(deadline=None, derandomize=True)
@given(group=groups, computed=st.integers(1, 5000))
def test_intervals_ascend_and_hold_the_newest_position(name: str, group: GroupSpec, computed: int) -> None:
    keeper = SLOT.make(name)
    kept = keeper.kept(group, computed)
    assert kept == keeper.kept(group, computed) == SLOT.make(name).kept(group, computed)
    ends = [end for interval in kept for end in interval]
    assert all(start < stop for start, stop in kept) and ends == sorted(ends)
    assert ends[0] >= 0 and ends[-1] == computed, "the newest position is not kept"


@pytest.mark.parametrize("name", members(SLOT))
@settings(deadline=None, derandomize=True)
@given(group=groups, steps=lengths)
def test_what_was_dropped_is_never_asked_for_again(name: str, group: GroupSpec, steps: list[int]) -> None:
    keeper = SLOT.make(name)
    for before, after in zip(steps, steps[1:], strict=False):
        old = {p for p in positions(keeper.kept(group, after)) if p < before}
        assert old <= positions(keeper.kept(group, before))


@pytest.mark.parametrize("name", members(SLOT))
@settings(deadline=None, derandomize=True)
@given(group=groups, computed=st.integers(1, 300))
def test_an_exact_keeper_keeps_everything_within_the_window(
    name: str, group: GroupSpec, computed: int
) -> None:
    keeper = SLOT.make(name)
    if keeper.card.exact == "bits":
        first = 0 if group.window is None else max(0, computed - group.window)
        assert positions(keeper.kept(group, computed)) >= set(range(first, computed))


@pytest.mark.parametrize("name", members(SLOT))
@settings(deadline=None, derandomize=True, max_examples=40)
@given(group=groups, steps=lengths, page_tokens=st.integers(1, 9))
def test_block_tables_hold_the_pages_it_keeps_and_no_others(
    name: str, group: GroupSpec, steps: list[int], page_tokens: int
) -> None:
    keeper = SLOT.make(name)
    pool = PagePool(-(-steps[-1] // page_tokens), 64, torch.device("cpu"))
    tables = BlockTables(pool, None, [group], PageSizes(64, (page_tokens,), page_tokens), keeper, tree=None)
    tables.admit(0, [], "")
    for start, stop in zip([0, *steps], steps, strict=False):
        tables.reserve(0, start, stop)
        tables.advance(0, [], stop)
        first = 0 if group.window is None else stop - group.window
        wanted = {p // page_tokens for p in positions(keeper.kept(group, stop)) if p >= first}
        live = {i for i, page in enumerate(tables.live_pages(0, 0)) if page != FREED}
        assert live == wanted
        tables.check()
