"""What may go wrong in the middle: a step that raises, a client that leaves. Nobody else notices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.params import SamplingParams
from headrace.sample.sampler import Sampler
from headrace.types import Request
from tests.whole import models
from tests.whole.drive import Outputs, alone, collect, nothing_left

PROMPTS = [tuple((7 * i + 3 * k + i * k) % models.VOCAB for i in range(8 + 9 * k)) for k in range(4)]


def engine(model: str = "mixed", **options: object) -> Engine:
    stack = {"policy": "sarathi:tokens=6,idle=11"}
    config = EngineConfig(**{"stack": stack, "threads": 1, "page_tokens": 4, **options})
    return Engine(config, decoder=models.decoder(model), poison=True)


def requests() -> list[Request]:
    """Greedy, sampled, penalised and manifold."""
    params = [
        SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
        SamplingParams(seed=1, max_tokens=15, n=3),
        SamplingParams(seed=2, max_tokens=12, frequency_penalty=0.8, repetition_penalty=1.2, min_tokens=5),
        SamplingParams(temperature=0, max_tokens=9, repetition_penalty=1.7),
    ]
    return [Request(id=f"r{i}", prompt=PROMPTS[i], params=p, arrival=float(i)) for i, p in enumerate(params)]


@functools.cache
def expected(model: str = "mixed") -> Outputs:
    return {
        (request.id, index): tokens
        for request in requests()
        for (_, index), tokens in alone(model, request).items()
    }


class Fault(Exception):
    """What the tests inject."""


def failing(made: Engine, at: str, every: int) -> list[int]:
    """Makes each `every`-th call of a part raise, after its work is done; returns the list of calls that did."""
    owner, name = {
        "runner": (made.runner, "forward"),
        "reserve": (made.kv, "reserve"),
        "sampler": (made, "sampler"),
    }[at]
    real: Callable[..., Any] = getattr(owner, name)
    calls, failed = [0], []

    def broken(*args: Any) -> Any:
        calls[0] += 1
        result = real(*args)
        if calls[0] % every == 0:
            failed.append(calls[0])
            raise Fault(at)
        return result

    if at == "sampler":  # calls of an object are looked up in its class
        real = functools.partial(Sampler.__call__, made.sampler)
        made.sampler.__class__ = type("Broken", (Sampler,), {"__call__": lambda self, *args: broken(*args)})
    else:
        setattr(owner, name, broken)
    return failed


@pytest.mark.parametrize(
    "options", [{}, {"prefix_cache": False}, {"max_seqs": 2}], ids=["cached", "plain", "two"]
)
@pytest.mark.parametrize("at", ["runner", "reserve", "sampler"])
def test_a_step_that_raises_loses_nothing(at: str, options: dict[str, object]) -> None:
    """Written keys, taken pages, drawn tokens: whatever the step had done is undone, and done again."""
    made = engine(**options)
    failed = failing(made, at, every=7)
    for request in requests():
        made.add(request)
    outputs: Outputs = {}
    while made.busy:
        try:
            deltas = made.step()
        except Fault:
            assert all(not made.kv.tables.holds(seq.id) for seq in made.queues)
        else:
            for delta in deltas:
                outputs.setdefault((delta.request, delta.index), []).extend(delta.tokens)
        made.kv.tables.check()
    assert len(failed) >= 3, "the test is too easy"
    assert outputs == expected()
    nothing_left(made)


def test_swapped_sequences_survive_a_step_that_raises() -> None:
    page = 2 * 2 * 2 * 4 * 4 * 8
    made = engine("full", kv_bytes=30 * page, preempt="swap", swap_bytes=1 << 20)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    for i in range(3):
        made.add(Request(id=f"r{i}", prompt=PROMPTS[3][i:], params=params, arrival=float(i)))
    outputs: Outputs = {}
    while not made.stats().swapped:
        for delta in made.step():
            outputs.setdefault((delta.request, delta.index), []).extend(delta.tokens)
    real = made.runner.forward
    made.runner.forward = lambda batch: (_ for _ in ()).throw(Fault())
    with pytest.raises(Fault):
        made.step()
    made.kv.tables.check()
    assert made.kv.tables.host is not None and made.kv.tables.host.num_free == len(made.kv.tables.host)
    made.runner.forward = real
    for key, tokens in collect(made).items():
        outputs.setdefault(key, []).extend(tokens)
    for i in range(3):
        (alone_tokens,) = alone("full", Request(id="x", prompt=PROMPTS[3][i:], params=params)).values()
        assert outputs[f"r{i}", 0] == alone_tokens
    nothing_left(made)


# ---- cancel ----


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 2, 4, 8])
def test_the_other_samples_go_on_without_the_first(steps: int, prefix_cache: bool) -> None:
    """Cancelled before, in and after the prompt, which the others wait for."""
    request = Request(
        id="r", prompt=PROMPTS[3], params=SamplingParams(n=3, seed=4, max_tokens=12, ignore_eos=True)
    )
    made = engine(prefix_cache=prefix_cache)
    made.add(request)
    outputs: Outputs = {}
    for _ in range(steps):
        for delta in made.step():
            outputs.setdefault((delta.request, delta.index), []).extend(delta.tokens)
    made.cancel("r", 0)
    made.kv.tables.check()
    for (_, index), tokens in collect(made).items():
        assert index != 0, "a cancelled sample went on"
        outputs.setdefault(("r", index), []).extend(tokens)
    whole = alone("mixed", request)
    assert [outputs["r", i] for i in (1, 2)] == [whole["alone", i] for i in (1, 2)]
    first = outputs.get(("r", 0), [])
    assert first == whole["alone", 0][: len(first)]
    nothing_left(made)


def test_cancelling_is_quiet_about_what_is_gone() -> None:
    made = engine()
    made.cancel("nobody")
    made.add(requests()[1])
    made.cancel("r1", 7)
    assert len(made.queues) == 3
    made.step()
    made.cancel("r1")
    made.cancel("r1")
    assert not made.busy and made.step() == []
    made.add(requests()[1])
    assert collect(made) == {key: tokens for key, tokens in expected().items() if key[0] == "r1"}
    nothing_left(made)


# ---- refusals ----


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(id="a", prompt=(), params=SamplingParams()), "empty"),
        (Request(id="a", prompt=(1,) * models.CONTEXT, params=SamplingParams()), "shorten the prompt"),
        (Request(id="a", prompt=(1, models.VOCAB), params=SamplingParams()), "vocabulary"),
        (Request(id="a", prompt=(1, -1), params=SamplingParams()), "vocabulary"),
        (Request(id="a", prompt=(1,), params=SamplingParams(logit_bias={models.VOCAB: 1.0})), "vocabulary"),
        (Request(id="a", prompt=(1,), params=SamplingParams(stop_token_ids=(models.VOCAB,))), "vocabulary"),
        (Request(id="taken", prompt=(1,), params=SamplingParams()), "already running"),
        (Request(id="a", prompt=(1,), params=SamplingParams(n=4)), "try again later"),
    ],
)
def test_a_request_that_cannot_run_changes_nothing(request_: Request, message: str) -> None:
    made = engine(max_waiting=4)
    made.add(Request(id="taken", prompt=(1, 2), params=SamplingParams()))
    with pytest.raises(ConfigError, match=message):
        made.add(request_)
    with pytest.raises(ConfigError, match="no living sample"):
        made.fork("nobody", "b")
    assert len(made.queues) == len(made.sampler) == 1
    made.close()
    nothing_left(made)
