"""Log-probabilities of a prompt: those of the naive way, each delivered once, whatever the schedule does to it."""

from __future__ import annotations

import pytest
import torch

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.forward.runner import SCORED_ROWS
from headrace.params import SamplingParams
from headrace.types import Logprob, Request
from tests.forward import dense
from tests.whole import models
from tests.whole.drive import nothing_left

PROMPT = tuple((17 * i + i * i // 3) % models.VOCAB for i in range(SCORED_ROWS + 13))
SCORED = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, prompt_logprobs=2)
PAGE = 2 * 2 * 2 * 4 * 4 * 8
"""Bytes of a page of 4 tokens of the model `full`."""

Scores = dict[str, list[Logprob]]
"""By request, all samples together, in the order of delivery."""


def engine(model: str = "full", policy: str = "sarathi", **options: object) -> Engine:
    config = EngineConfig(**{"stack": {"policy": policy}, "threads": 1, "page_tokens": 4, **options})
    return Engine(config, decoder=models.decoder(model), poison=True)


def drain(made: Engine, scores: Scores | None = None) -> Scores:
    scores = {} if scores is None else scores
    while made.busy:
        for delta in made.step():
            scores.setdefault(delta.request, []).extend(delta.prompt_logprobs)
        made.kv.tables.check()
    return scores


def scored(made: Engine, *prompts: tuple[int, ...], params: SamplingParams = SCORED) -> Scores:
    for i, prompt in enumerate(prompts):
        made.add(Request(id=f"r{i}", prompt=prompt, params=params, arrival=float(i)))
    return drain(made)


def agree(found: list[Logprob], model: str, prompt: tuple[int, ...]) -> None:
    """One entry for every token but the first."""
    assert [entry.token for entry in found] == list(prompt[1:])
    expected = dense.prompt_logprobs(models.decoder(model), list(prompt))
    assert [entry.logprob for entry in found] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("model", models.WINDOWS)
@pytest.mark.parametrize("policy", ["orca", "sarathi:tokens=1,idle=1", "sarathi:tokens=5,idle=7", "sarathi"])
def test_chunks_make_no_difference(model: str, policy: str) -> None:
    prompts = [PROMPT, PROMPT[5:30], (4,), (4, 9)]
    found = scored(engine(model, policy), *prompts)
    for i, prompt in enumerate(prompts):
        agree(found.get(f"r{i}", []), model, prompt)


def test_alternatives_are_the_likeliest_tokens() -> None:
    found = scored(engine(), PROMPT)["r0"]
    law = torch.log_softmax(dense.logits(models.decoder("full"), list(PROMPT)), -1)
    for row, entry in enumerate(found):
        best = law[row].topk(2)
        assert [token for token, _ in entry.top] == best.indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-9)


def test_a_cached_prompt_is_scored_all_the_same() -> None:
    """Its keys and values are known, but not what the model thought of its tokens: they run again."""
    made = engine()
    first, second = scored(made, PROMPT)["r0"], scored(made, PROMPT)["r0"]
    assert made.counters.cached_tokens == 0
    agree(second, "full", PROMPT)
    assert [entry.logprob for entry in first] == pytest.approx([entry.logprob for entry in second], abs=1e-9)
    made.add(Request(id="plain", prompt=PROMPT, params=SamplingParams(temperature=0, max_tokens=2)))
    drain(made)
    assert made.counters.cached_tokens > 60, "others profit from what it computed"


@pytest.mark.parametrize("preempt", ["recompute", "swap"])
def test_a_pause_neither_loses_nor_repeats_a_score(preempt: str) -> None:
    """Three in a pool for one and a half: somebody is paused in the middle of a prompt, and goes on after it."""
    made = engine(
        policy="sarathi:tokens=1,idle=8",
        kv_bytes=28 * PAGE,
        preempt=preempt,
        swap_bytes=1 << 20 if preempt == "swap" else 0,
    )
    long = SamplingParams(temperature=0, max_tokens=70, ignore_eos=True)
    made.add(Request(id="first", prompt=PROMPT[:20], params=long))
    made.add(Request(id="r0", prompt=PROMPT, params=SCORED, arrival=1.0))
    made.add(Request(id="r1", prompt=PROMPT[3:40], params=SCORED, arrival=2.0))
    scores: Scores = {}
    paused_in_prompt = False
    while made.busy:
        held = {seq.id: seq.num_computed for seq in made.queues}
        pauses = made.counters.recomputes + made.counters.swaps
        for delta in made.step():
            scores.setdefault(delta.request, []).extend(delta.prompt_logprobs)
        if made.counters.recomputes + made.counters.swaps > pauses:
            paused_in_prompt |= any(
                seq.status.value in ("waiting", "swapped") and 0 < held.get(seq.id, 0) < seq.prompt_len
                for seq in made.queues
            )
    assert paused_in_prompt, "the test is too easy"
    agree(scores["r0"], "full", PROMPT)
    agree(scores["r1"], "full", PROMPT[3:40])
    nothing_left(made)


@pytest.mark.parametrize("max_seqs", [1, 2, 8])
def test_samples_of_one_prompt_deliver_its_scores_once(max_seqs: int) -> None:
    params = SamplingParams(n=3, seed=1, max_tokens=6, ignore_eos=True, prompt_logprobs=0)
    agree(scored(engine(max_seqs=max_seqs), PROMPT, params=params)["r0"], "full", PROMPT)


def test_scores_are_delivered_once_though_the_first_sample_is_cancelled() -> None:
    made = engine(policy="sarathi:tokens=8,idle=8")
    params = SamplingParams(n=3, seed=1, max_tokens=6, ignore_eos=True, prompt_logprobs=0)
    made.add(Request(id="r0", prompt=PROMPT, params=params))
    scores: Scores = {"r0": []}
    for _ in range(3):
        for delta in made.step():
            scores["r0"] += delta.prompt_logprobs
    assert len(scores["r0"]) == 24
    made.cancel("r0", 0)
    agree(drain(made, scores)["r0"], "full", PROMPT)
