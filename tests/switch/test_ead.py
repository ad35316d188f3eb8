"""ead: whose turn it is, place by place; and what an engine with two models says, whatever runs beside it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.llm import LLM
from headrace.params import SamplingParams
from headrace.switch.switchers.ead import Ead, entropy
from headrace.types import Pooling, Request
from tests.speculate.test_draft_model import second
from tests.text.folders import random_model
from tests.whole import models
from tests.whole.drive import Ask, Fork, Outputs, collect, nothing_left, scripted
from tests.whole.test_schedules import schedules

SMALL = {
    "full": "mixed",
    "mixed": "full",
    "two_windows": "full",
    "int4": "int8_windows",
    "kivi": "kivi_windows",
}
"""The second model beside each."""


@pytest.fixture(autouse=True)
def second_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_open", lambda self, name: second(name))


def spec(model: str, threshold: float, window: int = 2, least: int = 2) -> str:
    return f"ead:model={SMALL[model]},threshold={threshold},window={window},least={least}"


def engine(model: str, switcher: str = "", **options: object) -> Engine:
    stack = {"policy": "orca", **models.stack(model), **({"switcher": switcher} if switcher else {})}
    made: dict[str, object] = {"page_tokens": models.page_tokens(model)[-1], "prefix_cache": False, **options}
    return Engine(EngineConfig(stack=stack, threads=1, **made), decoder=models.decoder(model))


def alone(model: str, switcher: str, request: Request) -> Outputs:
    made = engine(model, switcher)
    made.add(replace(request, id="alone", priority=0, arrival=0.0))
    return collect(made)


def alone_forked(model: str, switcher: str, request: Request, generated: int, seed: int) -> list[int]:
    made, seen = engine(model, switcher), 0
    made.add(replace(request, id="parent", params=replace(request.params, n=1), priority=0, arrival=0.0))
    while seen < generated:
        seen += sum(len(delta.tokens) for delta in made.step())
    made.fork("parent", "child", seed=seed)
    return collect(made).get(("child", 0), [])


# ---- the rule ----


def logits(bits: int) -> torch.Tensor:
    """An entropy of so many bits."""
    return torch.cat([torch.zeros(1 << bits), torch.full((40,), -1e4)])


def test_entropy_is_in_bits_whatever_the_dtype() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert entropy(logits(0).to(dtype)) == 0
        assert math.isclose(entropy(logits(5).to(dtype)), 5, abs_tol=1e-5)
    p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert math.isclose(entropy(p.log() + 7), 1.5)


def said(rule: Ead, bits: list[int]) -> str:
    """Who speaks at each place, where both models have this entropy there."""
    state, speakers = rule.init(), ""
    for each in bits:
        heard = state.hear(logits(each))
        if heard.large != state.large:
            heard = heard.hear(logits(each))
        state, speakers = heard, speakers + ("L" if heard.large else "s")
    return speakers


def test_a_mean_above_the_threshold_calls_the_large_model_and_each_stays_a_while() -> None:
    rule = Ead(model="x", threshold=2, window=2, least=3)
    assert said(rule, [0] * 6) == "s" * 6
    assert said(rule, [4] * 6) == "L" * 6, "also at the first place, where nobody owes tokens"
    assert said(rule, [0, 3, 3, 0, 0, 0, 0]) == "ssLLLss", "the mean of two, and three tokens at least"
    assert said(rule, [2, 0, 0, 0, 0]) == "LLLss", "at the threshold itself the large one speaks"
    assert said(Ead(model="x", threshold=2, window=1, least=1), [0, 2, 0, 2]) == "sLsL"


@pytest.mark.parametrize(
    ("option", "value"), [("threshold", -1), ("threshold", math.nan), ("window", 0), ("least", 0)]
)
def test_options_out_of_range(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=option):
        Ead(model="x", **{option: value})


# ---- in an engine ----

GREEDY = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.8, seed=3, n=2, max_tokens=30, ignore_eos=True, top_p=0.9)


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("model", SMALL)
def test_the_ends_are_the_two_models(model: str, params: SamplingParams) -> None:
    request = Request(id="r", prompt=tuple(range(3, 25)), params=params)
    large, small = alone(model, "", request), alone(SMALL[model], "", request)
    assert large != small
    assert alone(model, spec(model, 0), request) == large
    assert alone(model, spec(model, math.inf), request) == small


def between(model: str) -> float:
    """A threshold that these models are on both sides of."""
    made, seen = engine(model, spec(model, 0, window=1)), list[float]()
    speaks = made.sampler._speaks
    made.sampler._speaks = lambda seq, raw_V: seen.append(entropy(raw_V)) or speaks(seq, raw_V)  # type: ignore[func-returns-value]
    made.add(Request(id="r", prompt=tuple(range(3, 25)), params=GREEDY))
    collect(made)
    return sorted(seen)[len(seen) // 2]


@pytest.mark.parametrize("least", [1, 4])
@pytest.mark.parametrize("model", SMALL)
def test_switches_are_few_and_counted(model: str, least: int) -> None:
    made = engine(model, spec(model, between(model), window=1, least=least))
    requests = [Request(id=str(i), prompt=tuple(range(i, i + 20)), params=GREEDY) for i in range(4)]
    for request in requests:
        made.add(request)
    collect(made)
    counters = made.counters
    assert 4 < counters.switches <= 4 * (1 + (30 - 1) // least)
    assert 0 < counters.second_tokens < counters.generated_tokens == 120
    assert counters.prompt_tokens == 80, "though both models read prompts"
    for lane in made.lanes:
        lane.kv.check()
        assert len(lane.queues) == 0


@pytest.mark.parametrize("vocab", [models.VOCAB - 5, models.VOCAB, models.VOCAB + 3])
def test_a_vocabulary_that_is_padded_otherwise(vocab: int) -> None:
    """Tokens that the other model does not have are left out; those that this one does not know never come."""
    made = engine("full")
    made.add(Request(id="r", prompt=(5, 6, 7), params=GREEDY))
    [lane] = made.lanes
    plan = lane.plan()
    lane.kv.reserve(plan, lane.sequences)
    own, fitted = lane.run(plan, models.VOCAB).logits_RV.clone(), lane.run(plan, vocab).logits_RV
    assert fitted.shape == (1, vocab) and fitted.is_contiguous()
    known = min(vocab, models.VOCAB)
    assert torch.equal(fitted[:, :known], own[:, :known])
    assert fitted.isfinite().all() and not fitted.softmax(-1)[:, known:].any()


def test_whoever_runs_in_either_model_is_running() -> None:
    made = engine("full", spec("full", math.inf))
    made.add(Request(id="r", prompt=(5, 6, 7), params=GREEDY))
    assert (made.stats().running, made.stats().waiting) == (0, 1)
    made.step()
    assert (made.stats().running, made.stats().waiting) == (1, 0)
    collect(made)
    assert (made.stats().running, made.stats().waiting) == (0, 0)


def test_what_is_said_of_the_prompt_is_said_by_the_large_model() -> None:
    made, plain = engine("full", spec("full", math.inf)), engine("full")
    answers = []
    for one in (made, plain):
        scored = replace(GREEDY, prompt_logprobs=1)
        one.add(Request(id="scored", prompt=(5, 6, 7), params=scored))
        one.add(Request(id="pooled", prompt=(5, 6, 7), params=SamplingParams(), pooling=Pooling()))
        found = []
        while one.busy:
            found += [(d.request, d.tokens, d.prompt_logprobs, d.embedding) for d in one.step()]
        answers.append(found)
    assert answers[0] == answers[1] and made.counters.second_tokens == 0


def test_a_second_model_with_a_shorter_context_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def shorter(self: Engine, name: str) -> object:
        config = EngineConfig(context=40, page_tokens=4, threads=1)
        return type("Second", (), {"lane": Engine(config, decoder=models.decoder(name)).lanes[0]})

    monkeypatch.setattr(Engine, "_open", shorter)
    with pytest.raises(ConfigError, match="lower context to 40"):
        engine("full", spec("full", 1))
    engine("full", spec("full", 1), context=40)


def test_models_that_speak_otherwise_are_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="same vocabulary"):
        LLM("tiny", stack={"switcher": f"ead:model={random_model(tmp_path)}"})


def test_a_step_that_fails_leaves_no_trace() -> None:
    """Of either model, after the other one's pass too: what was heard in it is forgotten."""
    switcher = spec("full", between("full"), window=3, least=1)
    requests = [Request(id=str(i), prompt=tuple(range(3 + i, 25 + i)), params=GREEDY) for i in range(4)]
    expected = {request.id: alone("full", switcher, request)["alone", 0] for request in requests}
    made = engine("full", switcher)
    for lane in made.lanes:
        failing(lane)
    for request in requests:
        made.add(request)
    got: dict[str, list[int]] = {request.id: [] for request in requests}
    failures = 0
    while made.busy:
        try:
            for delta in made.step():
                got[delta.request] += delta.tokens
        except MemoryError:
            failures += 1
    assert got == expected and failures > 6
    nothing_left(made)


def failing(lane) -> None:  # type: ignore[no-untyped-def]
    """Every fifth pass ends in an error, after it has been made."""
    forward, passes = lane.runner.forward, [0]

    def sometimes(batch):  # type: ignore[no-untyped-def]
        found = forward(batch)
        passes[0] += 1
        if passes[0] % 5 == 0:
            raise MemoryError
        return found

    lane.runner.forward = sometimes


# ---- random schedules ----


@st.composite
def switching(draw: st.DrawFn) -> tuple[str, str, EngineConfig, list[Ask], list[Fork]]:
    model, config, asks, forks = draw(schedules(("full", "mixed", "int4", "kivi")))
    switcher = spec(
        model,
        draw(st.sampled_from([0, between_of(model), between_of(model), math.inf])),
        window=draw(st.integers(1, 3)),
        least=draw(st.integers(1, 3)),
    )
    return model, switcher, replace(config, stack={**config.stack, "switcher": switcher}), asks, forks


_BETWEEN: dict[str, float] = {}


def between_of(model: str) -> float:
    if model not in _BETWEEN:
        _BETWEEN[model] = between(model)
    return _BETWEEN[model]


def run_schedule(
    schedule: tuple[str, str, EngineConfig, list[Ask], list[Fork]], small_pages: int | None = None
) -> Engine:
    """Every request's tokens are those that it gets alone."""
    model, switcher, config, asks, forks = schedule
    made = Engine(config, decoder=models.decoder(model), poison=True)
    run = scripted(made, asks, forks)
    by_id = {ask.request.id: ask for ask in asks}
    for ask in asks:
        for (_, index), tokens in alone(model, switcher, ask.request).items():
            got = run.outputs.get((ask.request.id, index), [])
            ended = ask.cancel is None or (ask.request.id, index) in run.finished
            assert got == (tokens if ended else tokens[: len(got)]), f"{ask.request.id}[{index}]"
    for fork in (fork for fork in forks if fork.id in run.forked_at):
        parent, at = by_id[fork.parent].request, run.forked_at[fork.id]
        assert run.outputs.get((fork.id, 0), []) == alone_forked(model, switcher, parent, at, fork.seed), fork
    nothing_left(made)
    lane = made.lanes[1]
    lane.kv.tables.clear_cache()
    lane.kv.check()
    assert len(lane.queues) == 0 and lane.kv.tables.pool.num_free == len(lane.kv.tables.pool)
    return made


@pytest.mark.parametrize("examples", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_tokens_do_not_depend_on_the_schedule(examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second model's pool is as small as the first one's, so that pauses come on both sides."""
    happened: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(switching())
    def check(schedule: tuple[str, str, EngineConfig, list[Ask], list[Fork]]) -> None:
        monkeypatch.setattr(Engine, "_open", lambda self, name: small(name, self))
        made = run_schedule(schedule)
        happened["switches"] += made.counters.switches
        happened["second"] += made.counters.second_tokens
        happened["first"] += made.counters.generated_tokens - made.counters.second_tokens
        happened["pauses"] += made.counters.recomputes + made.counters.swaps
        happened["hits"] += made.counters.cached_tokens > 0

    check()
    assert min(happened.values()) >= 10, f"the schedules put too little pressure on the engine: {happened}"


def small(name: str, first: Engine):  # type: ignore[no-untyped-def]
    """The second model with the first one's limits, and hardly more pages than one sequence needs."""
    config = replace(
        first.config, stack={**models.stack(name), "policy": first.config.stack["policy"]}, kv_bytes=None
    )
    roomy = Engine(replace(config, preempt="recompute"), decoder=models.decoder(name))
    tables = roomy.kv.tables
    from headrace.forward.memory import pages_for

    pages = max(
        pages_for(tables.groups, tables.sizes, first.context, roomy.policy.longest_span),
        2 * len(tables.groups),
    )
    tight = replace(
        config, kv_bytes=pages * tables.sizes.page_bytes, context=first.context, preempt="recompute"
    )
    made = Engine(tight, decoder=models.decoder(name), poison=True)
    return type("Second", (), {"lane": made.lanes[0]})
