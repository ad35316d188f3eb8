"""A tier behind a small pool: pages leave and come back, and every request's tokens are those of running it alone."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.forward.memory import pages_for
from headrace.params import SamplingParams
from headrace.types import Request
from tests.whole import models
from tests.whole.drive import Ask, Fork, offloaded, prompt
from tests.whole.test_schedules import run_schedule, schedules

FOLDER = tempfile.TemporaryDirectory(prefix="headrace-test-tiers-")  # of this process, until it ends
Schedule = tuple[str, EngineConfig, list[Ask], list[Fork]]
TIERS = ("host", "disk")


def spec(tier: str, size: int, stage: int) -> str:
    return f"host:size={size}" if tier == "host" else f"disk:size={size},folder={FOLDER.name},stage={stage}"


def again(wanted: list[Ask], later: int) -> list[Ask]:
    """The requests, and once more some steps later."""
    return wanted + [
        Ask(
            dataclasses.replace(ask.request, id=f"{ask.request.id}-again", arrival=99.0 + i), ask.step + later
        )
        for i, ask in enumerate(wanted)
    ]


@st.composite
def tiered(draw: st.DrawFn, names: tuple[str, ...]) -> Schedule:
    """With a tier from one that has room for little to one that is roomy."""
    model, config, wanted, forks = draw(schedules(names))
    sizes = Engine(config, decoder=models.decoder(model)).kv.tables.sizes
    together = sum(sizes.granule // tokens for tokens in sizes.tokens)
    size = together * draw(st.sampled_from([1, 5, 40, 40]))
    tier = spec(
        draw(st.sampled_from(TIERS)),
        size * sizes.page_bytes,
        draw(st.sampled_from([1, 2, 5])) * sizes.page_bytes,
    )
    config = dataclasses.replace(config, prefix_cache=True, stack={**config.stack, "kv-tier": tier})
    return model, config, again(wanted, draw(st.integers(10, 60))), forks


def test_tokens_do_not_depend_on_the_tier() -> None:
    happened: Counter[str] = Counter()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(tiered(tuple(models.WINDOWS)))
    def check(schedule: Schedule) -> None:
        counters = run_schedule(schedule).stats().counters
        happened["pauses"] += counters.recomputes + counters.swaps
        tier, _, _ = schedule[1].stack["kv-tier"].partition(":")
        happened[f"{tier}: demotions"] += counters.demoted_pages
        happened[f"{tier}: promotions"] += counters.promoted_pages

    check()
    assert len(happened) == 5 and min(happened.values()) >= 20, f"too little pressure: {happened}"


@st.composite
def offload(draw: st.DrawFn) -> Schedule:
    """In a pool on disk, with drafts that are chains, trees or none; the least of it in memory, or a little more."""
    model, config, wanted, forks = draw(schedules(tuple(models.DEEP)))
    stack = dict(config.stack)
    drafter = draw(st.sampled_from(["", "", "copyspec:gamma=1,length=3", "recycle"]))
    if drafter:
        stack |= {"drafter": drafter, "draft-budget": "fixed:tokens=5"}
    decoder = models.decoder(model)
    pages = len(Engine(config, decoder=decoder).kv.tables.pool)
    config = dataclasses.replace(config, stack=stack, preempt="recompute", swap_bytes=0, prefix_cache=True)
    config = offloaded(config, decoder, pages, draw(st.sampled_from([0.0, 0.1, 0.5])), FOLDER.name)
    return model, config, again(wanted, draw(st.integers(10, 60))), forks


def test_nor_on_where_the_pool_lies() -> None:
    happened: Counter[str] = Counter()

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(offload())
    def check(schedule: Schedule) -> None:
        counters = run_schedule(schedule).stats().counters
        happened["pauses"] += counters.recomputes
        happened["prefix hits"] += counters.cached_tokens > 0
        happened["guesses refused"] += counters.drafted_tokens - counters.accepted_tokens
        happened["schedules that wrote"] += counters.tier_written_bytes > 0
        happened["schedules that read"] += counters.tier_read_bytes > 0

    check()
    assert len(happened) == 5 and min(happened.values()) >= 5, f"too little pressure: {happened}"


def crowded(model: str, tier: str, preempt: str) -> Schedule:
    """Prompts by turns, chunked, some with two samples and some forked, in a pool that hardly holds one of them."""
    page_tokens = models.page_tokens(model)[-1]
    config = EngineConfig(
        stack={"policy": "sarathi:tokens=7,idle=11", **models.stack(model)},
        page_tokens=page_tokens,
        threads=1,
        preempt="swap" if preempt == "swap" else "recompute",
        swap_bytes=1 << 20,
    )
    plain = Engine(config, decoder=models.decoder(model))
    tables, span = plain.kv.tables, plain.policy.longest_span
    pages = max(pages_for(tables.groups, tables.sizes, 70, span) + 1, 2 * len(tables.groups))
    size = tables.sizes.page_bytes
    config = dataclasses.replace(
        config, kv_bytes=pages * size, stack={**config.stack, "kv-tier": spec(tier, 300 * size, 3 * size)}
    )
    wanted = [
        Ask(
            Request(
                id=str(i),
                prompt=prompt(i % 3, length),
                params=SamplingParams(temperature=0.7, seed=i, n=1 + i % 2, max_tokens=12, ignore_eos=True),
                arrival=float(i),
            ),
            step=3 * i,
        )
        for i, length in enumerate((45, 50, 33, 49))
    ]
    return model, config, again(wanted, 40), [Fork("0", "f0", 12, 1), Fork("0-again", "f1", 60, 2)]


@pytest.mark.parametrize("model", [*models.DEEP, "int4", "squeezed"])
def test_nor_in_a_crowd_on_disk(model: str) -> None:
    """Selectors of single pages, windows and sinks; codes, and native kernels."""
    _, config, wanted, forks = crowded(model, "host", "recompute")
    stack = {name: spec for name, spec in config.stack.items() if name != "kv-tier"}
    pages = len(Engine(config, decoder=models.decoder(model)).kv.tables.pool)
    config = dataclasses.replace(config, stack=stack, swap_bytes=0)
    config = offloaded(config, models.decoder(model), 2 * pages, 0.0, FOLDER.name)
    counters = run_schedule((model, config, wanted, forks)).stats().counters
    assert counters.tier_written_bytes > 0 and counters.tier_read_bytes > 0, counters


@pytest.mark.parametrize(("tier", "preempt"), [("host", "recompute"), ("disk", "swap")])
@pytest.mark.parametrize("model", sorted({**models.NATIVE, **models.BLOCKS, **models.ARTIFACTS}))
def test_nor_do_they_with_other_members(model: str, tier: str, preempt: str) -> None:
    """Codecs that round, codecs of blocks, keepers, selectors, layouts of several groups, native kernels."""
    counters = run_schedule(crowded(model, tier, preempt)).stats().counters
    assert counters.demoted_pages > 0 and counters.promoted_pages > 0, counters
