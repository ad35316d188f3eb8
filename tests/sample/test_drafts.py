"""Drafts through the whole engine: right or wrong, they change how many steps it takes, and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.params import SamplingParams
from headrace.stats import Counters
from headrace.types import Request, Sequence, Span
from tests.whole import models
from tests.whole.drafting import PROMPTS, Answers, Drafting, logprobs, plan_by, run, tokens

Guess = Callable[[int, int], bool]
"""(generated so far, how far ahead) -> whether the guess is right."""

GUESSES: dict[str, Guess] = {
    "right": lambda generated, ahead: True,
    "wrong": lambda generated, ahead: False,
    "right-then-wrong": lambda generated, ahead: ahead < 2,
    "now-and-then": lambda generated, ahead: (generated + ahead) % 3 != 0,
}
PARAMS = {
    "greedy": SamplingParams(temperature=0, max_tokens=21, ignore_eos=True, logprobs=2),
    "sampled": SamplingParams(
        temperature=1.2, seed=3, max_tokens=21, ignore_eos=True, top_p=0.9, n=2, logprobs=0
    ),
    "penalised": SamplingParams(temperature=0, max_tokens=20, repetition_penalty=1.5, frequency_penalty=0.6),
    "ends": SamplingParams(temperature=1.0, seed=1, min_tokens=2, stop_token_ids=tuple(range(0, 60, 8))),
}


@dataclass
class Guessing(Drafting):
    """Chains that are right where a guess is."""

    guess: Guess
    length: int = 4

    def draft(self, span: Span, seq: Sequence, known: list[int]) -> Span:
        draft = tuple(
            token if self.guess(seq.num_generated, ahead) else (token + 1) % models.VOCAB
            for ahead, token in enumerate(known[: self.length])
        )
        return replace(span, draft=draft)


def engine(model: str, **options: object) -> Engine:
    stack = {"policy": "sarathi:tokens=8,idle=12"}
    config = EngineConfig(stack=stack, threads=1, **{"page_tokens": 4, **options})
    return Engine(config, decoder=models.decoder(model), poison=True)


@functools.cache
def plain(model: str, params: str) -> tuple[Answers, Counters]:
    """Without drafts."""
    made = engine(model)
    return run(made, PARAMS[params]), made.counters


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize(
    ("model", "guess"),
    [("mixed", guess) for guess in GUESSES]
    + [(model, guess) for model in ("full", "two_windows") for guess in ("right", "now-and-then")],
)
def test_tokens_do_not_depend_on_drafts(model: str, guess: str, params: str) -> None:
    truth, counters = plain(model, params)
    drafted = engine(model)
    plan_by(drafted, Guessing(drafted.policy, drafted, truth, GUESSES[guess]))
    answers = run(drafted, PARAMS[params])
    assert tokens(answers) == tokens(truth)
    assert logprobs(answers) == pytest.approx(logprobs(truth), abs=1e-9)
    assert drafted.counters.generated_tokens == counters.generated_tokens
    if guess == "wrong":
        assert drafted.counters.steps == counters.steps, "a wrong guess costs no step"
    else:
        assert drafted.counters.steps < counters.steps
    assert all(len(delta.tokens) <= 5 for deltas in answers.values() for delta in deltas)


@pytest.mark.parametrize("page_tokens", [1, 3, 16])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_drafts_may_cross_pages(page_tokens: int, prefix_cache: bool) -> None:
    """A draft of nine tokens writes into pages that it may have to leave again, cached granules excepted."""
    options = {"page_tokens": page_tokens, "prefix_cache": prefix_cache}
    truth = run(engine("mixed", **options), PARAMS["greedy"])
    drafted = engine("mixed", **options)
    plan_by(drafted, Guessing(drafted.policy, drafted, truth, GUESSES["now-and-then"], length=9))
    assert tokens(run(drafted, PARAMS["greedy"])) == tokens(truth)


def test_right_drafts_take_one_step_per_draft_and_one() -> None:
    truth, _ = plain("full", "greedy")
    drafted = engine("full")
    plan_by(drafted, Guessing(drafted.policy, drafted, truth, GUESSES["right"]))
    drafted.add(Request(id="r2", prompt=PROMPTS[2], params=PARAMS["greedy"]))
    counts = []
    while drafted.busy:
        counts += [len(delta.tokens) for delta in drafted.step()]
    assert counts == [5, 5, 5, 5, 1], "21 tokens: the last draft is cut where the answer ends"
