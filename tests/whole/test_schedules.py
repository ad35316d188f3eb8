"""Random schedules: every request's tokens are those of running it alone, and the cache's books always balance."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace import kernels
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.forward.memory import pages_for
from headrace.kv.stored import page_sizes, stored_groups
from headrace.params import SamplingParams
from headrace.slots import slots
from headrace.types import Request
from tests.whole import models
from tests.whole.drive import Ask, Fork, alone, alone_forked, nothing_left, scripted

PREFIXES = [tuple((7 * i + 3 * k) % models.VOCAB for i in range(40)) for k in range(3)]
"""Prompts start with pieces of these, so that they share prefixes."""


@st.composite
def params(draw: st.DrawFn) -> SamplingParams:
    greedy = draw(st.booleans())
    return SamplingParams(
        temperature=0 if greedy else draw(st.sampled_from([0.7, 1.0, 1.5])),
        n=1 if greedy else draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 5)),
        top_k=draw(st.sampled_from([0, 5])),
        top_p=draw(st.sampled_from([1.0, 0.8])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.5])),
        min_tokens=draw(st.sampled_from([0, 0, 3])),
        max_tokens=draw(st.sampled_from([3, 8, 16, 30, 40])),
        ignore_eos=draw(st.booleans()),
    )


@st.composite
def asks(draw: st.DrawFn, lengths: tuple[int, ...]) -> list[Ask]:
    """`lengths` of the prefixes that prompts share."""
    found = []
    for i in range(draw(st.sampled_from([1, 2, 4, 5, 6]))):
        prefix = draw(st.sampled_from(PREFIXES))[: draw(st.sampled_from(lengths))]
        own = tuple(
            draw(st.lists(st.integers(0, models.VOCAB - 1), min_size=0 if prefix else 1, max_size=12))
        )
        request = Request(
            id=f"r{i}",
            prompt=prefix + own,
            params=draw(params()),
            arrival=float(i),
            priority=draw(st.integers(0, 1)),
            salt=draw(st.sampled_from(["", "", "tenant"])),
        )
        start = draw(st.integers(0, 8))
        found.append(Ask(request, start, draw(st.none() | st.integers(start, start + 15))))
    return found


@st.composite
def configs(draw: st.DrawFn, model: str, longest: int) -> EngineConfig:
    """Pools from barely enough for the longest request to roomy, so that many schedules pause somebody."""
    policy = draw(
        st.sampled_from(
            ["orca", "sarathi:tokens=1,idle=1", "sarathi:tokens=4,idle=9", "sarathi:tokens=16,idle=64"]
        )
    )
    stack = models.stack(model)
    layout = stack.get("kv-layout") or draw(st.sampled_from(["windows", "windows", "single"]))
    page_tokens = draw(st.sampled_from(models.page_tokens(model)))
    architecture = models.decoder(model).architecture
    known = slots()
    codec = known["kv-codec"].make(stack.get("kv-codec", "plain"))
    keeper = known["kv-keeper"].make(stack.get("kv-keeper", "everything"))
    selector = known["kv-selector"].make(stack.get("kv-selector", "everything"))
    groups = stored_groups(known["kv-layout"].make(layout).groups(architecture), keeper, codec)
    dtype = models.decoder(model).dtype
    sizes = page_sizes(groups, page_tokens, codec, dtype, selector)
    span = known["policy"].make(policy).longest_span
    least = max(pages_for(groups, sizes, longest, span), 2 * len(groups))
    pages = least + draw(st.sampled_from([0, 0, 0, 1, 3, least // 2, 2 * least]))
    preempt = draw(st.sampled_from(["swap", "swap", "recompute"]))
    return EngineConfig(
        stack={"policy": policy, "kv-layout": layout, **stack},
        page_tokens=page_tokens,
        threads=1,
        kv_bytes=pages * sizes.page_bytes,
        preempt=preempt,
        swap_bytes=draw(st.sampled_from([least // 2 + 1, 4 * least])) * sizes.page_bytes
        if preempt == "swap"
        else 0,
        prefix_cache=draw(st.booleans()),
        max_seqs=draw(st.sampled_from([64, 64, 64, 3, 2, 1])),
    )


@st.composite
def schedules(
    draw: st.DrawFn, names: tuple[str, ...] = tuple(models.WINDOWS)
) -> tuple[str, EngineConfig, list[Ask], list[Fork]]:
    model = draw(st.sampled_from(sorted(names)))
    paged = any(model in group for group in (models.NATIVE, models.BLOCKS, models.ARTIFACTS, models.DEEP))
    wanted = draw(asks((17, 17, 33, 40) if paged else (0, 3, 5, 8, 12, 21, 40)))
    longest = max(len(a.request.prompt) + (a.request.params.max_tokens or 0) for a in wanted)
    forks = [
        Fork(
            draw(st.sampled_from(wanted)).request.id,
            f"f{i}",
            draw(st.integers(0, 20)),
            draw(st.integers(0, 9)),
        )
        for i in range(draw(st.integers(0, 2)))
    ]
    return model, draw(configs(model, longest)), wanted, forks


def run_schedule(schedule: tuple[str, EngineConfig, list[Ask], list[Fork]]) -> Engine:
    """Runs one schedule and compares every token with the request run alone."""
    model, config, wanted, forks = schedule
    engine = Engine(config, decoder=models.decoder(model), poison=True)
    run = scripted(engine, wanted, forks)
    by_id = {ask.request.id: ask for ask in wanted}
    for ask in wanted:
        expected = alone(model, ask.request)
        for (_, index), tokens in expected.items():
            got = run.outputs.get((ask.request.id, index), [])
            if ask.cancel is not None and (ask.request.id, index) not in run.finished:
                assert got == tokens[: len(got)], (
                    f"{ask.request.id}[{index}] went another way before its cancel"
                )
            else:
                assert got == tokens, f"{ask.request.id}[{index}]"
    for fork in forks:
        if fork.id in run.forked_at:
            parent = by_id[fork.parent].request
            expected_tokens = alone_forked(model, parent, run.forked_at[fork.id], fork.seed)
            assert run.outputs.get((fork.id, 0), []) == expected_tokens, f"fork {fork.id}"
    nothing_left(engine)
    return engine


def test_tokens_do_not_depend_on_the_schedule() -> None:
    happened: Counter[str] = Counter()

    @settings(max_examples=160, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(schedules())
    def check(schedule: tuple[str, EngineConfig, list[Ask], list[Fork]]) -> None:
        counters = run_schedule(schedule).counters
        happened["schedules"] += 1
        happened["recomputes"] += counters.recomputes
        happened["swaps"] += counters.swaps
        happened["prefix hits"] += counters.cached_tokens > 0

    check()
    assert happened["schedules"] >= 160
    assert min(happened.values()) >= 10, f"the schedules put too little pressure on the engine: {happened}"


@pytest.mark.skipif(kernels.isa() == kernels.REFERENCE, reason="PyTorch rounds a row by what is beside it")
def test_native_kernels_give_the_same_tokens_too() -> None:
    """Packed weights, bfloat16 keys and values, float32 arithmetic: bits, not closeness."""
    happened: Counter[str] = Counter()

    @settings(max_examples=70, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(schedules(tuple(models.NATIVE)))
    def check(schedule: tuple[str, EngineConfig, list[Ask], list[Fork]]) -> None:
        counters = run_schedule(schedule).counters
        happened["recomputes"] += counters.recomputes
        happened["swaps"] += counters.swaps
        happened["prefix hits"] += counters.cached_tokens > 0

    check()
    assert min(happened.values()) >= 3, f"the schedules put too little pressure on the engine: {happened}"


def test_nor_where_codecs_store_whole_blocks() -> None:
    """What a row reads rounded is a matter of its position alone."""
    happened: Counter[str] = Counter()

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(schedules(tuple(models.BLOCKS)))
    def check(schedule: tuple[str, EngineConfig, list[Ask], list[Fork]]) -> None:
        counters = run_schedule(schedule).counters
        happened["recomputes"] += counters.recomputes
        happened["swaps"] += counters.swaps
        happened["prefix hits"] += counters.cached_tokens > 0

    check()
    assert min(happened.values()) >= 3, f"the schedules put too little pressure on the engine: {happened}"


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedules())
def test_tokens_do_not_depend_on_the_schedule_at_length(
    schedule: tuple[str, EngineConfig, list[Ask], list[Fork]],
) -> None:
    run_schedule(schedule)
