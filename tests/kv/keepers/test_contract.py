"""Every keeper narrows what is read, says so the same way each time, and its pages are really freed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.kv.groups import GroupSpec, Interval, Member, PageSizes
from headrace.kv.keepers import SLOT
from headrace.kv.pool import FREED, PagePool
from headrace.kv.tables import BlockTables
from headrace.types import Request, SamplingParams
from tests.kv.contract import members
from tests.whole import models
from tests.whole.drive import collect, nothing_left

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
SPECS = [
    *(param.values[0] for param in members(SLOT)),
    "streaming:sink=2,window=9",
    "streaming:sink=0,window=1",
    "d2o:window=8,sink=4,block=4",
]

each_keeper = pytest.mark.parametrize("spec", SPECS)


def positions(intervals: tuple[Interval, ...]) -> set[int]:
    return {p for start, stop in intervals for p in range(start, stop)}


@each_keeper
@settings(deadline=None, derandomize=True)
@given(group=groups, position=st.integers(0, 300))
def test_a_limit_narrows_what_a_query_sees(spec: str, group: GroupSpec, position: int) -> None:
    keeper = SLOT.make(spec)
    limited = keeper.limit(group)
    assert limited == SLOT.make(spec).limit(group) and limited.members == group.members
    own, all_ = (positions(g.readable(position, position + 1)) for g in (limited, group))
    assert position in own, "a query does not see its own token"
    assert own <= all_
    if keeper.card.exact == "bits":
        assert own == all_


@each_keeper
@settings(deadline=None, derandomize=True)
@given(group=groups, steps=lengths)
def test_what_was_dropped_is_never_asked_for_again(spec: str, group: GroupSpec, steps: list[int]) -> None:
    limited = SLOT.make(spec).limit(group)
    for before, after in zip(steps, steps[1:], strict=False):
        old = {p for p in positions(limited.kept(after)) if p < before}
        assert old <= positions(limited.kept(before))


@each_keeper
@settings(deadline=None, derandomize=True, max_examples=40)
@given(group=groups, steps=lengths, page_tokens=st.integers(1, 9))
def test_block_tables_hold_the_pages_it_keeps_and_no_others(
    spec: str, group: GroupSpec, steps: list[int], page_tokens: int
) -> None:
    limited = SLOT.make(spec).limit(group)
    pool = PagePool(-(-steps[-1] // page_tokens), 64, torch.device("cpu"))
    tables = BlockTables(pool, None, [limited], PageSizes(64, (page_tokens,), page_tokens), tree=None)
    tables.admit(0, [], "")
    for start, stop in zip([0, *steps], steps, strict=False):
        tables.reserve(0, start, stop)
        tables.advance(0, [], stop)
        wanted = {p // page_tokens for p in positions(limited.kept(stop))}
        live = {i for i, page in enumerate(tables.live_pages(0, 0)) if page != FREED}
        assert live == wanted
        tables.check()


def test_streaming_takes_constant_memory() -> None:
    """However long the text is; and beyond its window nothing of the middle is read."""
    config = EngineConfig(
        stack={"kv-keeper": "streaming:sink=2,window=10", "policy": "sarathi:tokens=4,idle=4"},
        page_tokens=4,
        threads=1,
    )
    made = Engine(config, decoder=models.decoder("full"), poison=True)
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    made.add(Request(id="r", prompt=tuple(i % models.VOCAB for i in range(30)), params=params))
    held = []
    while made.busy:
        made.step()
        held += [sum(made.kv.tables.holding(seq.id, seq.num_computed).live) for seq in made.queues]
    assert max(held) <= 2 + 4 and held[-1] <= 5
    nothing_left(made)


def test_the_middle_of_a_long_text_is_forgotten() -> None:
    """Prompts that differ only there have the same continuation; with everything kept they do not."""
    found = {}
    for keeper in ("everything", "streaming:sink=2,window=10"):
        config = EngineConfig(stack={"kv-keeper": keeper}, page_tokens=4, threads=1)
        made = Engine(config, decoder=models.decoder("full"))
        for name, middle in (("a", 7), ("b", 8)):
            prompt = (3, 4, *(middle,) * 20, *range(20, 50))
            params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
            made.add(Request(id=name, prompt=prompt, params=params))
        outputs = collect(made)
        found[keeper] = outputs["a", 0] == outputs["b", 0]
    assert found["everything"] is False


@pytest.mark.parametrize("spec", ["streaming:sink=-1", "streaming:window=0"])
def test_options_that_are_none(spec: str) -> None:
    with pytest.raises(ConfigError):
        SLOT.make(spec)
