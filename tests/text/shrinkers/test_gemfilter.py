"""gemfilter: the tokens that stay are those that the filter layer attends to, and they run like any short prompt."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from headrace import LLM
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.params import SamplingParams
from headrace.text.shrinkers import SLOT, Seen
from headrace.types import Pooling, Request, Status
from tests.models.dense_kv import DenseKV, batch_of
from tests.whole import models
from tests.whole.drive import (
    GREEDY,
    Fork,
    Outputs,
    alone,
    alone_forked,
    asks,
    collect,
    nothing_left,
    prompt,
    scripted,
)

SPEC = "gemfilter:keep=12,layer=1,last=3"
LENGTHS = (60, 41, 9, 12, 13, 60)
"""Of the prompts."""


def engine(
    spec: str = SPEC, model: str = "full", stack: dict[str, str] | None = None, **options: object
) -> Engine:
    slots = {"policy": "sarathi:tokens=5,idle=9", **({"shrinker": spec} if spec else {}), **(stack or {})}
    config = EngineConfig(stack=slots, page_tokens=4, threads=1, **options)
    return Engine(config, decoder=models.decoder(model), poison=True)


def expected(tokens: tuple[int, ...], model: str = "full", keep: int = 12, last: int = 3) -> list[int]:
    """Places that stay, from dense attention and a loop."""
    decoder, kv = models.decoder(model), DenseKV(models.decoder(model).architecture)
    with torch.inference_mode():
        decoder.forward(batch_of(list(tokens)), _Kept(kv))
    query, keys = _Kept.query, _Kept.keys
    score = [sum(float(query[h] @ keys[t, h // 2]) for h in range(4)) for t in range(len(tokens))]
    padded = [0.0, 0.0, *score, 0.0, 0.0]
    pooled = [sum(padded[t : t + 5]) / 5 for t in range(len(tokens))]
    ends = [0, *range(len(tokens) - last, len(tokens))]
    order = sorted(set(range(len(tokens))) - set(ends), key=lambda t: -pooled[t])
    return sorted([*ends, *order[: keep - len(ends)]])


class _Kept:
    """Dense attention, and what layer 1 was asked."""

    query: torch.Tensor
    keys: torch.Tensor

    def __init__(self, kv: DenseKV) -> None:
        self.kv = kv

    def attend(self, layer, q_TNH, k_TGH, v_TGH, batch):
        if layer == 1:
            _Kept.query, _Kept.keys = q_TNH[-1], k_TGH
        return self.kv.attend(layer, q_TNH, k_TGH, v_TGH, batch)


def shrunk(request: Request, model: str = "full") -> Request:
    """The same request for the tokens that should stay."""
    kept = expected(request.prompt, model) if len(request.prompt) > 12 else range(len(request.prompt))
    return dataclasses.replace(request, prompt=tuple(request.prompt[place] for place in kept))


@pytest.mark.parametrize("model", ["full", "mixed"])
def test_it_runs_the_tokens_that_it_should(model: str) -> None:
    """Chunks, samples, prefix hits and pauses beside it."""
    for options in ({"prefix_cache": False}, {}, {"kv_bytes": 40 * 512, "context": 72}):
        made = engine(model=model, **options)
        found = scripted(made, asks(LENGTHS), [])
        for ask in asks(LENGTHS):
            want = alone(model, shrunk(ask.request, model))
            got = {
                ("alone", index): tokens
                for (name, index), tokens in found.outputs.items()
                if name == ask.request.id
            }
            assert got == want, ask.request.id
        dropped = sum(max(0, len(ask.request.prompt) - 12) for ask in asks(LENGTHS))
        assert made.counters.dropped_tokens >= dropped > 100
        nothing_left(made)
    assert made.counters.recomputes > 0


def test_what_keeps_everything_changes_nothing() -> None:
    found = [
        scripted(engine(spec), asks(LENGTHS), [Fork("0", "f", 5, 3)]).outputs
        for spec in ("gemfilter:keep=60,layer=1", "")
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "stack", [{"kv-codec": "kivi:group=16,residual=16"}, {"kv-keeper": "streaming:sink=2,window=9"}], ids=str
)
def test_neighbours(stack: dict[str, str]) -> None:
    """Other stacks see a short prompt, whatever they do with it."""
    found, plain = engine(stack=stack), engine("gemfilter:keep=96", stack=stack)
    found.add(Request(id="r", prompt=prompt(3, 50), params=GREEDY))
    plain.add(shrunk(Request(id="r", prompt=prompt(3, 50), params=GREEDY)))
    assert collect(found) == collect(plain)


def test_a_shrunk_prompt_is_nobodys_prefix() -> None:
    """Only one that has these very tokens finds its pages; one that begins like the whole prompt does not."""
    made = engine(prefix_cache=True)
    first = Request(
        id="a", prompt=prompt(1, 60), params=SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    )
    short = dataclasses.replace(shrunk(first), id="b")
    begins = dataclasses.replace(first, id="c", prompt=first.prompt[:12])
    found: Outputs = {}
    cached = {}
    for request in (first, short, begins):
        made.add(request)
        while made.busy:
            for delta in made.step():
                found.setdefault((delta.request, 0), []).extend(delta.tokens)
                cached[request.id] = max(cached.get(request.id, 0), delta.cached)
    assert found["b", 0] == found["a", 0] and cached["b"] == 8
    shared = next(i for i, (x, y) in enumerate(zip(short.prompt, begins.prompt, strict=True)) if x != y)
    assert cached["c"] <= shared < 12
    assert found["c", 0] == alone("full", begins)["alone", 0]


def test_forks_and_cancels_while_a_prompt_is_read() -> None:
    made = engine()
    busy = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    made.add(Request(id="busy", prompt=prompt(5, 8), params=busy))
    made.step()
    params = SamplingParams(temperature=0.7, seed=4, n=2, max_tokens=6, ignore_eos=True)
    request = Request(id="r", prompt=prompt(2, 60), params=params)
    made.add(request)
    made.step()
    made.step()
    assert len(made.prompts.pending) == 2, "32 of 60 rows are read beside what runs"
    made.fork("r", "f", seed=1)
    made.cancel("r", 0)
    found = collect(made)
    assert found["r", 1] == alone("full", shrunk(request))["alone", 1] and ("r", 0) not in found
    assert found["f", 0] == alone_forked("full", shrunk(request), 0, 1)
    nothing_left(made)


def test_a_step_that_fails_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    request = Request(
        id="r", prompt=prompt(2, 60), params=SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    )
    made.add(request)
    with monkeypatch.context() as patch:
        patch.setattr(made.decoder, "peek", lambda *_: 1 / 0)
        made.step()
        with pytest.raises(ZeroDivisionError):
            made.step()
    assert [seq.status for seq in made.queues] == [Status.WAITING]
    assert collect(made)["r", 0] == alone("full", shrunk(request))["alone", 0]


def test_what_asks_about_the_prompt_itself_keeps_it_whole() -> None:
    made = engine()
    made.add(Request(id="p", prompt=prompt(2, 60), params=SamplingParams(), pooling=Pooling()))
    scored = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    made.add(Request(id="s", prompt=prompt(2, 60), params=scored))
    deltas = []
    while made.busy:
        deltas += made.step()
    assert sum(len(delta.prompt_logprobs) for delta in deltas) == 59
    assert any(delta.embedding for delta in deltas) and made.counters.dropped_tokens == 0


def test_both_counts_are_told() -> None:
    with LLM("tiny", stack={"shrinker": "gemfilter:keep=40"}, threads=1) as llm:
        [output] = llm.generate(["x = 1\n" * 60], SamplingParams(temperature=0, max_tokens=4), progress=False)
        usage = output.usage
        assert usage.prompt_tokens > 100 and usage.dropped_tokens == usage.prompt_tokens - 40
        [output] = llm.generate(["x = 1\n"], SamplingParams(temperature=0, max_tokens=4), progress=False)
        assert output.usage.dropped_tokens == 0


def test_ties_go_to_the_earlier_token() -> None:
    seen = Seen(torch.zeros(4, 4), torch.zeros(30, 2, 4))
    assert SLOT.make("gemfilter:keep=8,last=2").choose(seen) == [0, 1, 2, 3, 4, 5, 28, 29]


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("gemfilter:layer=2", "use a lower one"),
        ("gemfilter:layer=0", "at least 1"),
        ("gemfilter:keep=10", "keep=10"),
        ("gemfilter:pool=4", "odd"),
    ],
)
def test_options_that_are_none(spec: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        engine(spec)
