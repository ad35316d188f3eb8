"""Pooled hidden states: those of the naive way, and the same bits whatever the schedule does to the prompt."""

from __future__ import annotations

import struct
from typing import Literal

import pytest
import torch

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.params import SamplingParams
from headrace.types import Pooling, Request
from tests.models.dense_kv import DenseKV, batch_of
from tests.whole import models
from tests.whole.drive import nothing_left

PROMPT = tuple((17 * i + i * i // 3) % models.VOCAB for i in range(77))
PROMPTS = (PROMPT, PROMPT[:40], PROMPT[5:30], (4,), (4, 9))
KINDS = ("mean", "last")
Kind = Literal["mean", "last"]
PAGE = 2 * 2 * 2 * 4 * 4 * 8
"""Bytes of a page of 4 tokens of the model `full`."""


def engine(model: str = "full", policy: str = "sarathi", **options: object) -> Engine:
    stack = {"policy": policy, **models.stack(model)}
    pages = models.page_tokens(model)[-1] if model in models.NATIVE else 4
    config = EngineConfig(**{"stack": stack, "threads": 1, "page_tokens": pages, **options})
    return Engine(config, decoder=models.decoder(model), poison=True)


def asked(name: str, prompt: tuple[int, ...], kind: Kind, **fields: object) -> Request:
    pooling = Pooling(kind=kind, **fields)  # type: ignore[arg-type]
    return Request(id=name, prompt=prompt, params=SamplingParams(), pooling=pooling, arrival=float(len(name)))


def drain(made: Engine) -> dict[str, bytes]:
    """The vectors by request; each comes once, without tokens, and ends its request."""
    found: dict[str, bytes] = {}
    while made.busy:
        for delta in made.step():
            if delta.embedding:
                assert delta.request not in found and delta.finish_reason == "stop" and not delta.tokens
                found[delta.request] = delta.embedding
        made.kv.tables.check()
    return found


def pooled(made: Engine, *requests: Request) -> dict[str, bytes]:
    for request in requests:
        made.add(request)
    return drain(made)


def values(data: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(data) // 4}f", data))


@torch.inference_mode()
def naive(model: str, prompt: tuple[int, ...], kind: Kind) -> list[float]:
    decoder = models.decoder(model)
    hidden_TD = decoder.forward(batch_of(list(prompt)), DenseKV(decoder.architecture))
    return (hidden_TD.mean(0) if kind == "mean" else hidden_TD[-1]).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", models.WINDOWS)
@pytest.mark.parametrize("policy", ["orca", "sarathi:tokens=1,idle=1", "sarathi:tokens=5,idle=7"])
def test_as_the_naive_way(model: str, policy: str, kind: Kind) -> None:
    found = pooled(engine(model, policy), *(asked(str(i), p, kind) for i, p in enumerate(PROMPTS)))
    for i, prompt in enumerate(PROMPTS):
        assert values(found[str(i)]) == pytest.approx(naive(model, prompt, kind), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["int4", "int8_windows", "bf16"])
def test_the_same_bits_whatever_the_schedule(model: str, kind: Kind) -> None:
    alone = [pooled(engine(model, "orca"), asked("one", prompt, kind))["one"] for prompt in PROMPTS]
    for policy in ("orca", "sarathi:tokens=3,idle=3", "sarathi:tokens=16,idle=32"):
        made = engine(model, policy)
        busy = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
        made.add(Request(id="decoding", prompt=PROMPT[:3], params=busy))
        for round in range(2):  # the second time, its pages are cached
            found = pooled(made, *(asked(f"{round}{i}", p, kind) for i, p in enumerate(PROMPTS)))
            assert [found[f"{round}{i}"] for i in range(len(PROMPTS))] == alone, policy
        nothing_left(made)


def test_the_mean_takes_nothing_from_the_cache_and_the_last_token_all_it_can() -> None:
    made = engine()
    pooled(made, asked("a", PROMPT, "mean"))
    computed, cached = made.counters.computed_tokens, made.counters.cached_tokens
    pooled(made, asked("b", PROMPT, "mean"))
    assert made.counters.computed_tokens - computed == len(PROMPT) and made.counters.cached_tokens == cached
    pooled(made, asked("c", PROMPT, "last"))
    assert made.counters.cached_tokens - cached == 76, "all full pages before the last token"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preempt", ["recompute", "swap"])
def test_a_pause_changes_nothing(preempt: str, kind: Kind) -> None:
    """Prompts in a pool for one and a half beside one that grows: somebody is paused half-way."""
    swap = 1 << 20 if preempt == "swap" else 0
    made = engine(policy="sarathi:tokens=1,idle=8", kv_bytes=28 * PAGE, preempt=preempt, swap_bytes=swap)
    long = SamplingParams(temperature=0, max_tokens=70, ignore_eos=True)
    made.add(Request(id="first", prompt=PROMPT[:20], params=long))
    made.add(asked("r0", PROMPT, kind))
    made.add(asked("r-1", PROMPT[3:40], kind))
    found: dict[str, bytes] = {}
    half_way = False
    while made.busy:
        held = {seq.id: seq.num_computed for seq in made.queues if seq.request.pooling}
        pauses = made.counters.recomputes + made.counters.swaps
        found |= {delta.request: delta.embedding for delta in made.step() if delta.embedding}
        made.kv.tables.check()
        if made.counters.recomputes + made.counters.swaps > pauses:
            paused = [seq for seq in made.queues if seq.status.value in ("waiting", "swapped")]
            half_way |= any(held.get(seq.id, 0) for seq in paused)
    assert half_way, "the test is too easy"
    for name, prompt in (("r0", PROMPT), ("r-1", PROMPT[3:40])):
        assert found[name] == pooled(engine(), asked(name, prompt, kind))[name]
    nothing_left(made)


def test_a_step_that_fails_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(policy="sarathi:tokens=8,idle=8")
    made.add(asked("r", PROMPT, "mean"))
    made.step(), made.step()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(made, "commit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            made.step()
    assert drain(made)["r"] == pooled(engine(), asked("r", PROMPT, "mean"))["r"]


@pytest.mark.parametrize("kind", KINDS)
def test_cut_and_scaled(kind: Kind) -> None:
    whole = naive("full", PROMPT, kind)
    found = pooled(engine(), asked("r", PROMPT, kind, normalize=True, dimensions=5))["r"]
    length = sum(value * value for value in whole[:5]) ** 0.5
    assert values(found) == pytest.approx([value / length for value in whole[:5]], rel=1e-6)


def test_a_prompt_may_fill_the_context() -> None:
    """Nothing follows it. The pool holds one such prompt and not more."""
    prompt = tuple(i % models.VOCAB for i in range(models.CONTEXT))
    made = engine(kv_bytes=(models.CONTEXT // 4 + 1) * PAGE, context=models.CONTEXT)
    found = pooled(made, asked("r", prompt, "mean"))
    assert values(found["r"]) == pytest.approx(naive("full", prompt, "mean"), rel=1e-6)
    with pytest.raises(ConfigError, match="97 tokens, and the context holds 96"):
        made.add(asked("s", (*prompt, 1), "mean"))


def test_refused() -> None:
    made = engine()
    with pytest.raises(ConfigError, match="takes no sampling parameters"):
        made.add(Request(id="r", prompt=(1,), params=SamplingParams(max_tokens=1), pooling=Pooling()))
    for dimensions in (0, 17):
        with pytest.raises(ConfigError, match=f"dimensions={dimensions}: this model's vectors have 16"):
            made.add(asked("r", (1,), "mean", dimensions=dimensions))


def test_a_vector_that_is_not_finite_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    forward = made.decoder.forward
    monkeypatch.setattr(made.decoder, "forward", lambda batch, kv: forward(batch, kv) * float("nan"))
    made.add(asked("r", PROMPT, "mean"))
    (delta,) = made.step()
    assert delta.finish_reason == "error" and "non_finite_embedding" in delta.error and not delta.embedding
    nothing_left(made)


def test_an_input_that_was_embedded_shares_its_pages() -> None:
    made = engine()
    pooled(made, asked("a", PROMPT, "mean"))
    made.add(Request(id="b", prompt=PROMPT, params=SamplingParams(temperature=0, max_tokens=1)))
    drain(made)
    assert made.counters.cached_tokens == 76
