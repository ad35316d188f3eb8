"""razor: what left counts as its mean, as often as it is many, whatever the schedule; and its pages are freed."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from headrace import cli, kernels
from headrace.architecture import Architecture
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.forward.memory import pages_for
from headrace.kernels.attention import Queries
from headrace.kv.groups import GroupSpec, Member
from headrace.kv.layouts import SLOT
from headrace.kv.summary import start_summary
from headrace.params import SamplingParams
from headrace.types import Batch, Fold, Reads, Request, Run
from tests.models.dense_kv import batch_of
from tests.whole import models
from tests.whole.drive import Ask, Fork, collect, nothing_left
from tests.whole.test_schedules import run_schedule, schedules

SINK, WINDOW, BLOCK = 4, 8, 4


class Compensated:
    """Keys and values of one text in one batch; heads in `near` see a sink, a window, and the mean of the rest."""

    def __init__(self, architecture: Architecture, near: set[tuple[int, int]]) -> None:
        self._specs = [block.attention for block in architecture.blocks]
        self._near = near

    def attend(self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, batch: Batch) -> Tensor:
        spec, out_TNH = self._specs[layer], torch.empty_like(q_TNH)
        each = spec.heads // spec.kv_heads
        for p in range(len(q_TNH)):
            for n in range(spec.heads):
                k_LH, v_LH = k_TGH[: p + 1, n // each], v_TGH[: p + 1, n // each]
                logs_L = torch.zeros(p + 1, dtype=q_TNH.dtype)
                first = p // BLOCK * BLOCK + BLOCK - WINDOW
                if (layer, n // each) in self._near and first > SINK:
                    k_LH, v_LH = (
                        torch.cat((x[:SINK], x[SINK:first].mean(0, keepdim=True), x[first:]))
                        for x in (k_LH, v_LH)
                    )
                    logs_L = torch.zeros(len(k_LH), dtype=q_TNH.dtype)
                    logs_L[SINK] = math.log(first - SINK)
                out_TNH[p, n] = (k_LH @ q_TNH[p, n] * spec.scale + logs_L).softmax(0) @ v_LH
        return out_TNH


def engine(page_tokens: int, layout: str = "", **options: object) -> Engine:
    layout = layout or f"razor:profile={models.profile()},share=0.5,sink={SINK},window={WINDOW},block={BLOCK}"
    config = EngineConfig(stack={"kv-layout": layout}, page_tokens=page_tokens, threads=1, **options)
    return Engine(config, decoder=models.decoder("full"), poison=True)


@pytest.mark.parametrize("page_tokens", [1, 4])
def test_tokens_are_those_of_the_formula(page_tokens: int) -> None:
    decoder = models.decoder("full")
    prompt = [i * i % models.VOCAB for i in range(37)]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    made = engine(page_tokens)
    made.add(Request(id="r", prompt=tuple(prompt), params=params))
    got = collect(made)["r", 0]
    nothing_left(made)
    tokens = list(prompt)
    near = {(0, 0), (1, 1)}  # of the profile's scores, the lower half
    for _ in got:
        with torch.inference_mode():
            hidden = decoder.forward(batch_of(tokens), Compensated(decoder.architecture, near))
            tokens.append(int(decoder.logits(hidden[-1:]).argmax()))
    assert got == tokens[len(prompt) :]


def test_tokens_do_not_depend_on_the_schedule() -> None:
    """Chunks, prefix hits, pauses, swaps, samples, forks: what a head reads is a matter of the position."""
    happened: Counter[str] = Counter()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(schedules(("razor", "razor_small", "razor_kivi")))
    def check(schedule: tuple[str, EngineConfig, list[Ask], list[Fork]]) -> None:
        happened["prefix hits"] += run_schedule(schedule).counters.cached_tokens > 0

    check()
    assert happened["prefix hits"] >= 2


@pytest.mark.parametrize(
    "pressed", [{}, {"preempt": "swap", "swap_bytes": 1 << 20}], ids=["recompute", "swap"]
)
def test_nor_on_who_has_to_give_way(pressed: dict[str, object]) -> None:
    found = []
    roomy = engine(4, prefix_cache=False)
    tables = roomy.kv.tables
    pages = pages_for(tables.groups, tables.sizes, 71, roomy.policy.longest_span)
    tight = engine(4, context=71, kv_bytes=pages * tables.sizes.page_bytes, **pressed)
    for made in (roomy, tight):
        for i, length in enumerate((31, 7, 30)):
            prompt = tuple((7 * i + 5 * k) % models.VOCAB for k in range(length))
            params = SamplingParams(temperature=0.7, seed=i, n=3, max_tokens=40, ignore_eos=True)
            made.add(Request(id=str(i), prompt=prompt, params=params, arrival=float(i)))
        found.append(collect(made))
        nothing_left(made)
    assert tight.counters.recomputes + tight.counters.swaps > 2
    assert found[0] == found[1]


def test_drafts_that_are_refused_leave_no_trace() -> None:
    """They may have completed a block, and its record."""
    prompt = (3, 4, 5, 6, 7, 8, 9) * 6
    params = SamplingParams(temperature=1.5, seed=3, max_tokens=40, ignore_eos=True)
    layout = f"razor:profile={models.profile()},share=0,sink={SINK},window={WINDOW},block={BLOCK}"
    found = []
    for drafter in ("", "copyspec:gamma=1"):
        stack = {
            "kv-layout": layout,
            **({"drafter": drafter, "draft-budget": "fixed:tokens=6"} if drafter else {}),
        }
        config = EngineConfig(stack=stack, page_tokens=2, threads=1)
        made = Engine(config, decoder=models.decoder("full"), poison=True)
        made.add(Request(id="r", prompt=prompt, params=params))
        found.append(collect(made))
        if drafter:
            assert made.counters.drafted_tokens > made.counters.accepted_tokens + 20
        nothing_left(made)
    assert found[0] == found[1]


def test_rows_get_the_same_bits_whatever_is_beside_them() -> None:
    """In float32, where sums are rounded."""
    summary = (
        SLOT.make(f"razor:profile={models.profile()}").groups(models.decoder("full").architecture)[1].summary
    )
    member = Member(0, (0, 1), 64)
    group = GroupSpec("g", (member,), 128, 0, summary=summary)
    live = start_summary(group.records(), 1, torch.float32)
    generator = torch.Generator().manual_seed(0)
    arena = torch.zeros(3, 4096, dtype=torch.uint8)
    k, v = (torch.randn(64, 2, 64, generator=generator) for _ in range(2))
    pages, none = torch.tensor([1, 2]), torch.tensor([], dtype=torch.int64)
    live.merge(arena, 0, Fold(128, none, none, none, pages[:1], none), lambda *_: (k, v), None)
    live.merge(arena, 0, Fold(192, none, none, pages[:1], pages[1:], none), lambda *_: (v, k), None)
    q = torch.randn(9, 8, 64, generator=generator)
    positions = torch.arange(192, 201)
    together = live.attend(
        arena, 0, Queries(q, positions, 0.1, 128), Reads(pages, (Run(0, 4, 0, 64, 64), Run(4, 9, 1, 128, 64)))
    )
    for row, page, start in ((0, 0, 64), (3, 0, 64), (4, 1, 128), (8, 1, 128)):
        rows = slice(row, row + 1)
        reads = Reads(pages[page : page + 1], (Run(0, 1, 0, start, 64),))
        own = live.attend(arena, 0, Queries(q[rows], positions[rows], 0.1, 128), reads)
        assert torch.equal(own.out_TNH, together.out_TNH[rows]) and torch.equal(
            own.lse_TN, together.lse_TN[rows]
        )


def test_memory_of_the_others_is_given_back() -> None:
    """However long the text: a sink, a window, one block on the way out, and a record or two."""
    held = {}
    for layout in ("single", ""):
        made = engine(4, layout)
        params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
        made.add(Request(id="r", prompt=tuple(i % models.VOCAB for i in range(90)), params=params))
        made.step()
        made.step()
        [seq] = made.queues
        held[layout] = made.kv.tables.holding(seq.id, seq.num_computed).live
        if not layout:
            names = [group.holds for group in made.kv.tables.groups]
            assert names == ["all", "all", "summary"]
            full, near, records = held[layout]
            assert full == -(-91 // 4) and near <= (SINK + WINDOW) // 4 + 1 and records <= 2
            size = made.kv.tables.sizes.page_bytes
        else:
            single = made.kv.tables.sizes.page_bytes
    assert sum(held[""]) * size < 0.7 * held["single"][0] * single


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("razor", "profile"),
        ("razor:profile=x,share=2", "share"),
        ("razor:profile=x,block=48", "power of two"),
        ("razor:profile=x,window=100", "multiples"),
        ("razor:profile=x,sink=4", "multiples"),
        ("razor:profile=x,window=0", "window"),
    ],
)
def test_options_that_are_none(spec: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        SLOT.make(spec)


@pytest.mark.parametrize(
    ("stack", "window", "page_tokens", "why"),
    [
        ({"kv-keeper": "streaming:sink=4,window=10"}, 12, 4, "use 12 and 4"),
        ({"kv-codec": "kivi:group=16,residual=16"}, 12, 4, "use window=20"),
        ({"kv-codec": "kivi:group=16,residual=16"}, 20, 4, "use block=16"),
        ({}, 12, 3, "use 1"),
        ({}, 12, 8, "use 4"),
    ],
)
def test_stacks_that_do_not_fit(stack: dict[str, str], window: int, page_tokens: int, why: str) -> None:
    layout = f"razor:profile={models.profile()},share=0.5,sink={SINK},window={window},block={BLOCK}"
    with pytest.raises(ConfigError, match=why) as caught:
        Engine(
            EngineConfig(stack={"kv-layout": layout, **stack}, page_tokens=page_tokens, threads=1),
            decoder=models.decoder("full"),
        )
    assert "\n" not in str(caught.value)


def test_it_runs_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "tiny.json"
    assert cli.main(["profile", "--model", "tiny", "--out", str(out), "--json"]) == 0
    argv = [
        "run",
        "def f(x):",
        "--max-tokens",
        "8",
        "--temperature",
        "0",
        "--kv-layout",
        f"razor:profile={out}",
    ]
    assert cli.main(argv) == 0


@pytest.mark.slow
@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedules(("razor", "razor_small", "razor_kivi")))
def test_at_length(schedule: tuple[str, EngineConfig, list[Ask], list[Fork]]) -> None:
    run_schedule(schedule)


@pytest.mark.skipif(kernels.isa() == kernels.REFERENCE, reason="PyTorch rounds a row by what is beside it")
@pytest.mark.parametrize("share", [0, 0.5])
def test_native_kernels_give_the_same_tokens_on_any_schedule(share: float) -> None:
    """In float32, with weights and keys rounded; nothing is played back, as a record is made now and then."""
    found = []
    layout = f"razor:profile={models.profile()},share={share},sink=16,window=32,block=16"
    for policy, one_by_one in (("orca", True), ("sarathi:tokens=7,idle=11", False)):
        stack = {**models.stack("int8_windows"), "kv-layout": layout, "policy": policy}
        made = Engine(EngineConfig(stack=stack, threads=1), decoder=models.decoder("int4"), poison=True)
        assert made.runner.recordings is None
        tokens = {}
        for i, length in enumerate((70, 33, 70)):
            params = SamplingParams(temperature=0.8, seed=i, max_tokens=25, ignore_eos=True)
            made.add(
                Request(id=str(i), prompt=tuple(k * k % models.VOCAB for k in range(length)), params=params)
            )
            if one_by_one:
                tokens.update(collect(made))
        found.append(tokens or collect(made))
        nothing_left(made)
    assert found[0] == found[1]


@pytest.mark.parametrize("length", [35, 36, 37])
def test_a_prefix_hit_and_a_second_sample_find_the_record(length: int) -> None:
    """Wherever a block of 4 or a granule of 12 ends; the second sample runs the newest token again."""
    layout = f"razor:profile={models.profile()},share=0.25,sink={SINK},window={WINDOW},block={BLOCK}"
    prompt = tuple(k * k % models.VOCAB for k in range(length))
    params = SamplingParams(temperature=0.8, seed=1, n=2, max_tokens=9, ignore_eos=True)
    found = []
    for cached in (False, True):
        made = engine(2, layout, prefix_cache=cached)
        assert made.kv.tables.sizes.granule == 12
        for name in ("a", "b"):
            made.add(Request(id=name, prompt=prompt, params=params))
            found.append({index: tokens for (_, index), tokens in collect(made).items()})
        assert (made.counters.cached_tokens > 0) is cached
        nothing_left(made)
    assert found[0] == found[1] == found[2] == found[3]
