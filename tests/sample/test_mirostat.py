"""Mirostat: the surprise of what is drawn settles at the target, and its state follows forks and what is taken back."""

from __future__ import annotations

import math
import random

import pytest
import torch

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.params import SamplingParams
from headrace.sample import draw
from headrace.sample.processors import SLOT
from headrace.sample.processors.mirostat import rank_of
from headrace.types import Request
from tests.whole import models
from tests.whole.drive import collect, nothing_left

VOCAB = 2000


def logits(seed: int, power: float) -> torch.Tensor:
    """Probabilities that fall like a power of the rank, in a random order, with some noise."""
    random_ = torch.Generator().manual_seed(seed)
    ranks = torch.randperm(VOCAB, generator=random_).double() + 1
    return -power * ranks.log() + 0.2 * torch.randn(VOCAB, generator=random_, dtype=torch.float64)


def start(spec: str = "mirostat"):
    return SLOT.make(spec).init(SamplingParams(temperature=1.0), (1, 2), 2, ())


def surprises(spec: str, power: float, count: int) -> list[float]:
    state, found, draws = start(spec), [], random.Random(1)
    for step in range(count):
        row_V = logits(step % 50, power)
        token = draw.choose(state.apply(row_V.clone()), draws.random())
        state.accept(token, row_V)
        found.append(-float(torch.log_softmax(row_V, -1)[token]) / math.log(2))
    return found


@pytest.mark.parametrize("power", [1.1, 1.2, 1.4])
@pytest.mark.parametrize("target", [3.0, 3.5, 4.0])
def test_the_mean_surprise_is_the_target(target: float, power: float) -> None:
    found = surprises(f"mirostat:target={target}", power, 1500)[100:]
    assert abs(sum(found) / len(found) - target) < 0.1


def test_without_feedback_it_would_not_be() -> None:
    """The test above can fail: the same draws from everything are nowhere near the lowest target."""
    state, found, draws = start("mirostat:target=32,rate=1e-9"), [], random.Random(1)
    for step in range(500):
        row_V = logits(step % 50, 1.1)
        token = draw.choose(state.apply(row_V.clone()), draws.random())
        state.accept(token, row_V)
        found.append(-float(torch.log_softmax(row_V, -1)[token]) / math.log(2))
    assert abs(sum(found) / len(found) - 3.0) > 1


def go_on(state, steps: range) -> None:
    for step in steps:
        row_V = logits(step, 1.1)
        state.accept(int(state.apply(row_V.clone()).argmax()), row_V)


def test_forks_and_tokens_taken_back() -> None:
    one = start()
    go_on(one, range(9))
    twin = one.fork()
    go_on(one, range(60, 65))
    assert not torch.equal(one.apply(logits(70, 1.1)), twin.apply(logits(70, 1.1)))
    one.rollback(5)
    assert torch.equal(one.apply(logits(70, 1.1)), twin.apply(logits(70, 1.1)))


def test_greedy_requests_are_left_alone() -> None:
    assert SLOT.make("mirostat").init(SamplingParams(temperature=0), (1,), 1, ()) is None


@pytest.mark.parametrize("spec", ["mirostat:target=0", "mirostat:rate=2", "mirostat:tau=3"])
def test_options_that_are_none(spec: str) -> None:
    with pytest.raises(ConfigError):
        SLOT.make(spec)


@pytest.mark.parametrize(
    ("mu", "best", "low", "high"),
    [
        (1.0, [0.0, -1.0, -2.0], 1, 3),
        (60.0, [0.0, -0.1, -0.2], 100, 100),
        (5.0, [0.0], 1, 100),
        (5.0, [], 1, 100),
    ],
)
def test_the_cut_off_is_a_number_of_tokens(mu: float, best: list[float], low: int, high: int) -> None:
    assert low <= rank_of(mu, best, 100) <= high


def test_whole_engine_with_chunks_drafts_forks_and_pauses() -> None:
    """The same tokens whatever the schedule, though each depends on all before it."""

    def run(**options: object) -> dict[tuple[str, int], list[int]]:
        stack = {"processors": f"{SLOT.default}+mirostat:target=2.5", **options.pop("stack", {})}
        config = EngineConfig(stack={**models.stack("full"), **stack}, page_tokens=4, threads=1, **options)
        made = Engine(config, decoder=models.decoder("full"), poison=True)
        for i, length in enumerate((23, 5, 17)):
            prompt = tuple((5 * k + i) % 11 for k in range(length))
            params = SamplingParams(temperature=1.0, seed=i, n=2, max_tokens=24, ignore_eos=True)
            made.add(Request(id=f"r{i}", prompt=prompt, params=params, arrival=float(i)))
        found = collect(made)
        nothing_left(made)
        return found

    plain = run(stack={"policy": "orca"}, prefix_cache=False)
    page = Engine(
        EngineConfig(page_tokens=4, threads=1), decoder=models.decoder("full")
    ).kv.tables.sizes.page_bytes
    for drafter in ("copyspec:gamma=1", "recycle"):
        drafting = {"policy": "sarathi:tokens=5", "drafter": drafter, "draft-budget": "fixed"}
        assert run(stack=drafting) == plain
    assert run(stack={"policy": "sarathi:tokens=5"}, kv_bytes=26 * page, context=60) == plain
