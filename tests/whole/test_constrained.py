"""Grammars inside the whole engine: whatever runs beside them, the tokens are those of the request alone."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
from dataclasses import dataclass, replace

import pytest

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.forward.runner import Logits
from headrace.params import Grammar, SamplingParams
from headrace.sample.constrained import Constraints
from headrace.sample.grammars import SLOT, Compiler, Matcher
from headrace.types import Batch, Delta, Request
from tests.sample.grammars.small import FORMS, vocabulary
from tests.sample.test_drafts import Guessing
from tests.whole import models
from tests.whole.drafting import Answers, logprobs, plan_by, tokens
from tests.whole.drafting import run_all as run

WORDS = vocabulary(1, eos=(0,))
PROMPTS = [tuple((5 * i + 3) % models.VOCAB for i in range(n)) for n in (23, 23, 1, 9, 30, 17)]
PARAMS = {
    "greedy": SamplingParams(temperature=0, logprobs=1),
    "sampled": SamplingParams(temperature=1.3, seed=3, top_p=0.9, n=2, logprobs=0),
    "penalised": SamplingParams(temperature=0, repetition_penalty=1.5, frequency_penalty=0.6),
    "biased": SamplingParams(temperature=1, seed=5, min_p=0.05, logit_bias={0: 4, 9: 3, 40: -100}, n=2),
}
ASKED = [
    (form, params)
    for form in ("object", "regex", "forced", "nested", "choice", "string")
    for params in PARAMS
]


@functools.cache
def compiler(member: str) -> Compiler:
    return SLOT.make(f"{member}:whitespace=1").start(WORDS)


def engine(
    member: str = "llguidance", *, ahead: bool = True, model: str = "mixed", **options: object
) -> Engine:
    """ahead: with drafts of forced tokens, as engines are."""
    stack = {"policy": "sarathi:tokens=8,idle=12", **models.stack(model), **options.pop("stack", {})}  # type: ignore[dict-item]
    config = EngineConfig(stack=stack, threads=1, **{"page_tokens": models.page_tokens(model)[-1], **options})
    made = Engine(config, decoder=models.decoder(model), poison=True)
    equip(made, compiler(member))
    if not ahead:
        made.speculator.extend = lambda plan: plan  # type: ignore[method-assign]
    return made


def equip(made: Engine, compiler: Compiler) -> None:
    """As if the model had a tokenizer."""
    made.sampler.constraints = Constraints(lambda: compiler)


def requests(asked: list[tuple[str, str]]) -> list[Request]:
    return [
        Request(
            id=f"{form}-{params}",
            prompt=PROMPTS[i % len(PROMPTS)],
            params=replace(PARAMS[params], grammar=FORMS[form].grammar, max_tokens=40),
            arrival=float(i),
        )
        for i, (form, params) in enumerate(asked)
    ]


def request(form: str, params: str) -> Request:
    return next(r for r in requests(ASKED) if r.id == f"{form}-{params}")


@functools.cache
def alone(member: str, model: str = "mixed") -> Answers:
    """Every request by itself, its prompt in one piece, a token per step."""
    found: Answers = {}
    for request in requests(ASKED):
        plain = engine(member, ahead=False, model=model, prefix_cache=False, stack={"policy": "orca"})
        found |= run(plain, [request])
    return found


def test_what_ends_has_its_form() -> None:
    ended = 0
    for (name, _), deltas in alone("llguidance").items():
        text = b"".join(WORDS.tokens[token] for delta in deltas for token in delta.tokens if token != 0)
        form = FORMS[name.partition("-")[0]]
        assert form.fits(text)
        if deltas[-1].finish_reason == "stop":
            assert form.complete(text)
            ended += 1
        else:
            assert deltas[-1].finish_reason == "length"
    assert ended >= 30


@dataclass(frozen=True)
class Company:
    """How an engine is pressed, and the counter that shows that it was."""

    shows: str
    options: dict[str, object]


PRESSED = {
    "chunks": Company("steps", {"stack": {"policy": "sarathi:tokens=3,idle=5"}}),
    "prefixes": Company("cached_tokens", {"page_tokens": 2}),
    "recompute": Company("recomputes", {"page_tokens": 4, "kv_bytes": 16 << 10, "preempt": "recompute"}),
    "swap": Company(
        "swaps", {"page_tokens": 4, "kv_bytes": 16 << 10, "preempt": "swap", "swap_bytes": 1 << 20}
    ),
    "trees": Company("drafted_tokens", {"stack": {"drafter": "recycle", "draft-budget": "fixed:tokens=6"}}),
    "two-at-a-time": Company("accepted_tokens", {"max_seqs": 2}),
}


@pytest.mark.parametrize(
    "member,pressed",
    [("llguidance", pressed) for pressed in PRESSED] + [("xgrammar", "recompute"), ("xgrammar", "swap")],
)
def test_tokens_do_not_depend_on_company(member: str, pressed: str) -> None:
    if importlib.util.find_spec(member) is None:
        pytest.skip(f"{member} is not installed")
    together = engine(member, **PRESSED[pressed].options)
    answers = run(together, requests(ASKED))
    assert tokens(answers) == tokens(alone(member))
    assert logprobs(answers) == pytest.approx(logprobs(alone(member)), abs=1e-9)
    assert getattr(together.counters, PRESSED[pressed].shows) > 0
    assert together.counters.accepted_tokens > 0, "nothing was drafted"


@pytest.mark.parametrize("guess", ["right", "wrong", "now-and-then"])
def test_drafts_of_others(guess: str) -> None:
    """A draft may break the grammar, or go on after the end."""
    guesses = {
        "right": lambda g, a: True,
        "wrong": lambda g, a: False,
        "now-and-then": lambda g, a: (g + a) % 3,
    }
    truth, drafted = alone("llguidance"), engine()
    plan_by(drafted, Guessing(drafted.policy, drafted, truth, guesses[guess]))
    answers = run(drafted, requests(ASKED))
    assert tokens(answers) == tokens(truth)
    assert logprobs(answers) == pytest.approx(logprobs(truth), abs=1e-9)


def test_native_kernels_give_the_same_tokens_too() -> None:
    answers = run(engine(model="int4", page_tokens=16), requests(ASKED))
    assert tokens(answers) == tokens(alone("llguidance", "int4"))


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_a_fork_goes_on_in_the_form(steps: int) -> None:
    asked = request("object", "sampled")
    asked = replace(asked, params=replace(asked.params, n=1))
    found = []
    for ahead in (True, False):
        made = engine(ahead=ahead)
        made.add(asked)
        generated = 0
        while generated < steps:
            generated += sum(len(delta.tokens) for delta in made.step())
        if ahead:
            steps = generated  # it may have taken several at once
        made.fork(asked.id, "fork", seed=9)
        if not ahead:
            made.cancel(asked.id)  # nobody is beside it
        found.append(tokens(run(made, []))["fork", 0])
    assert found[0] == found[1]


def test_a_step_that_fails_loses_nothing() -> None:
    """Grammars begin again behind the tokens that there are."""
    made = engine()
    wanted = [
        request(form, params) for form in ("object", "nested", "regex") for params in ("greedy", "sampled")
    ]
    for one in wanted:
        made.add(one)
    forward, answers, failures = made.runner.forward, dict[tuple[str, int], list[Delta]](), iter((5, 9))
    fails = next(failures)

    def failing(batch: Batch) -> Logits:
        nonlocal fails
        if made.counters.steps == fails:
            fails = next(failures, -1)
            raise MemoryError
        return forward(batch)

    made.runner.forward = failing  # type: ignore[method-assign]
    while made.busy:
        with contextlib.suppress(MemoryError):
            for delta in made.step():
                answers.setdefault((delta.request, delta.index), []).append(delta)
    assert fails == -1
    truth = tokens(alone("llguidance"))
    assert tokens(answers) == {key: truth[key] for key in truth if key[0] in {one.id for one in wanted}}


def test_forced_tokens_take_fewer_steps() -> None:
    """Nine tokens of text without a choice, then one choice."""
    asked = request("forced", "greedy")
    answers, steps = [], []
    for ahead in (True, False):
        made = engine(ahead=ahead, stack={"policy": "orca"})
        answers.append(tokens(run(made, [asked])))
        steps.append(made.counters.steps)
        assert made.counters.accepted_tokens == (made.counters.drafted_tokens if ahead else 0)
    assert answers[0] == answers[1]
    assert steps[1] == len(answers[0][asked.id, 0])
    assert steps[0] <= steps[1] // 2


class Slow:
    """A compiler that takes its time over one grammar, until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def compile(self, grammar: Grammar) -> Matcher:
        if grammar == FORMS["regex"].grammar:
            assert self.go.wait(60)
        if grammar.text == "bad":
            raise ConfigError("regex: bad")
        return compiler("llguidance").compile(grammar)


def test_a_grammar_that_compiles_slowly_delays_nobody_else() -> None:
    made, slow = engine(), Slow()
    equip(made, slow)
    first, other = request("regex", "sampled"), request("object", "greedy")
    free = replace(other, id="free", params=replace(other.params, grammar=None))
    run(made, [replace(free, id="before")])
    made.add(first)
    assert made.step() == [], "nothing can run yet"
    assert made.last_plan.spans == ()
    made.add(free)
    answers: Answers = {}
    while len(made.queues) > first.params.n:
        for delta in made.step():
            answers.setdefault((delta.request, delta.index), []).append(delta)
    assert set(answers) == {("free", 0)} and answers["free", 0][-1].finish_reason
    made.cancel(first.id, index=1)
    slow.go.set()
    answers = run(made, [])
    assert tokens(answers)[first.id, 0] == tokens(alone("llguidance"))[first.id, 0]


def test_what_cannot_be_compiled_ends_alone() -> None:
    made = engine()
    equip(made, Slow())
    good = request("object", "greedy")
    bad = replace(good, id="bad", params=replace(good.params, grammar=Grammar("regex", "bad")))
    answers = run(made, [bad, good])
    [last] = answers["bad", 0]
    assert last.finish_reason == "error" and last.error == "regex: bad" and not last.tokens
    assert tokens(answers)[good.id, 0] == tokens(alone("llguidance"))[good.id, 0]


@pytest.mark.parametrize("member", SLOT.index)
@pytest.mark.parametrize("form", ["object", "forced", "choice"])
def test_a_request_that_forbids_what_its_form_needs_ends_alone(member: str, form: str) -> None:
    if importlib.util.find_spec(member) is None:
        pytest.skip(f"{member} is not installed")
    good = request(form, "greedy")
    first = tokens(alone(member))[good.id, 0][0]
    bad = replace(good, id="bad", params=replace(good.params, allowed_token_ids=(first, 2)))
    answers = run(engine(member), [bad, good])
    assert (
        answers["bad", 0][-1].finish_reason == "error" and "nothing can follow" in answers["bad", 0][-1].error
    )
    assert tokens(answers)[good.id, 0] == tokens(alone(member))[good.id, 0]


def test_an_engine_without_a_tokenizer_takes_no_grammar() -> None:
    made = Engine(EngineConfig(threads=1), decoder=models.decoder("mixed"))
    with pytest.raises(ConfigError, match="needs the model's tokenizer"):
        made.add(request("object", "greedy"))
