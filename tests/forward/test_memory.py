"""Sizes are chosen before anything is allocated, and every promise of context is one that the pool can keep."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.architecture import Architecture
from headrace.compose import Stack, compose
from headrace.config import EngineConfig
from headrace.errors import ConfigError
from headrace.forward import memory
from headrace.forward.memory import MemoryPlan, pages_for, plan_memory, torch_device, torch_dtype
from headrace.kv.groups import GroupSpec, Member, PageSizes
from headrace.kv.pool import PagePool
from headrace.kv.tables import BlockTables
from tests.whole import models

CPU = torch.device("cpu")
PAGE = 2 * 2 * 2 * 4 * 16 * 8
"""Bytes of a page of the model `full`: keys and values, layers, heads, head size, tokens, float64."""


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 1 << 30)


def has(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(memory.memory, "available_bytes", lambda device: free)


def plan(model: str = "full", span: int | None = None, **options: object) -> MemoryPlan:
    config = EngineConfig(**options)
    architecture: Architecture = models.decoder(model).architecture
    if config.context is not None:
        architecture = replace(architecture, context=config.context)
    stack: Stack = compose(config, architecture.facts())
    return plan_memory(config, architecture, stack, span, torch.float64, CPU)


# ---- how large ----


def test_the_default_pool_holds_eight_contexts() -> None:
    pages = models.CONTEXT // 16 + 1
    assert plan() == MemoryPlan(memory.CONTEXTS * pages * PAGE, models.CONTEXT)


def test_the_default_pool_takes_a_quarter_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 100 * PAGE)
    assert plan().kv_bytes == 25 * PAGE
    has(monkeypatch, None)
    assert plan().kv_bytes == 8 * 7 * PAGE, "nobody knows: as if there were room"


def test_a_small_pool_shortens_the_context_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert plan(kv_bytes=5 * PAGE).context == 4 * 16, "one page is kept for copies"
    assert f"raise kv_bytes to {7 * PAGE}" in caplog.text
    assert plan(kv_bytes=7 * PAGE).context == models.CONTEXT
    assert plan(kv_bytes=7 * PAGE - 1).context == models.CONTEXT - 16


def test_a_context_that_was_asked_for_is_kept_or_refused() -> None:
    assert plan(kv_bytes=5 * PAGE, context=64).context == 64
    with pytest.raises(ConfigError, match=f"raise kv_bytes to {6 * PAGE} or lower context"):
        plan(kv_bytes=5 * PAGE, context=65)


@pytest.mark.parametrize("kv_bytes", [1, PAGE])
def test_a_pool_without_room_for_two_tokens_is_refused(kv_bytes: int) -> None:
    with pytest.raises(ConfigError, match="raise kv_bytes"):
        plan(kv_bytes=kv_bytes)


def test_states_of_tokens_that_left_count_beside_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = models.decoder("full").architecture
    config = EngineConfig(prefix_cache=False, stack={"skipper": "lazyllm:steps=1,first=0.5"})
    stack: Stack = compose(config, decoder.facts())
    thinned = stack.one("skipper").adapt(decoder)
    state = 16 * decoder.width * 8  # of a page's tokens, parked at one depth
    has(monkeypatch, 4 * 10 * (PAGE + state))
    assert plan_memory(config, thinned, stack, None, torch.float64, CPU).kv_bytes == 10 * PAGE
    has(monkeypatch, 10 * (PAGE + state) - 1)
    with pytest.raises(ConfigError, match="states of tokens that left"):
        plan_memory(replace(config, kv_bytes=10 * PAGE), thinned, stack, None, torch.float64, CPU)


def test_more_than_there_is_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 10 * PAGE)
    assert plan(kv_bytes=7 * PAGE).kv_bytes == 7 * PAGE
    with pytest.raises(ConfigError, match="do not fit"):
        plan(kv_bytes=11 * PAGE)
    with pytest.raises(ConfigError, match="lower kv_bytes or swap_bytes"):
        plan(kv_bytes=7 * PAGE, swap_bytes=4 * PAGE)


def test_windows_need_less_and_short_spans_less_still() -> None:
    full, whole, chunks = plan("full"), plan("two_windows"), plan("two_windows", span=4)
    assert chunks.kv_bytes < whole.kv_bytes <= full.kv_bytes


# ---- the promise ----


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    groups=st.sampled_from([((None,), (4,)), ((5,), (2,)), ((None, 3), (2, 4)), ((8, 1, 20), (4, 2, 6))]),
    spans=st.lists(st.integers(1, 30), min_size=1, max_size=25),
    forked=st.booleans(),
)
def test_a_sequence_never_holds_more_pages_than_planned(
    groups: tuple[tuple[int | None, ...], tuple[int, ...]], spans: list[int], forked: bool
) -> None:
    """In a pool of just that many pages, whatever the spans, and with one page per group to copy."""
    windows, tokens = groups
    specs = tuple(GroupSpec(f"g{i}", (Member(i, (0,), 1),), window) for i, window in enumerate(windows))
    sizes = PageSizes(64, tokens, 1)
    pool = PagePool(pages_for(specs, sizes, sum(spans), max(spans)), 64, CPU)
    tables = BlockTables(pool, None, specs, sizes, None)
    tables.admit(0, [], "")
    computed = 0
    for span in spans:
        tables.reserve(0, computed, computed + span)  # OutOfPages is the failure
        computed += span
        tables.advance(0, [], computed)
        if forked:  # a fork goes on alone, from pages that it shares for a moment
            tables.share(0, 1, computed)
            tables.reserve(0, computed, computed)
            tables.release(1)
    tables.check()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(models.WINDOWS)), st.none() | st.integers(1, 200), st.integers(1, 40))
def test_longer_sequences_never_need_fewer_pages(model: str, span: int | None, page_tokens: int) -> None:
    specs = tuple(
        GroupSpec(f"g{i}", (Member(i, (0,), 1),), window) for i, window in enumerate(models.WINDOWS[model])
    )
    sizes = PageSizes(64, (page_tokens,) * len(specs), page_tokens)
    needs = [pages_for(specs, sizes, length, span) for length in range(1, 200)]
    assert needs == sorted(needs)


# ---- device and dtype ----


def test_devices() -> None:
    assert torch_device("cpu") == CPU
    for name in ("quantum", "meta"):
        with pytest.raises(ConfigError, match="use cpu or cuda"):
            torch_device(name)


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="use device=cpu"):
        torch_device("cuda")


def test_dtypes() -> None:
    assert torch_dtype(EngineConfig()) == torch.float32
    assert torch_dtype(EngineConfig(device="cuda")) == torch.bfloat16
    assert torch_dtype(EngineConfig(dtype="float64", device="cuda")) == torch.float64
