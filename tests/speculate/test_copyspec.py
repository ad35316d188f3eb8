"""copyspec: what it guesses is what a search through the text finds; what comes out is what came out without it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.params import SamplingParams
from headrace.slots import slots
from headrace.speculate.second import Auxiliary
from headrace.types import Request
from tests.whole import models
from tests.whole.drive import Ask, Fork, Outputs, collect, nothing_left, scripted


def no_model(name: str) -> Auxiliary:
    raise AssertionError("no model is wanted")


def searched(tokens: Sequence[int], gamma: int, count: int) -> tuple[int, ...]:
    """The obvious way: the latest earlier place of the last gamma tokens, and what follows, again and again."""
    text = list(tokens)
    for end in range(len(text) - 1, gamma - 1, -1):
        if text[end - gamma : end] == text[len(text) - gamma :]:
            for i in range(count):
                text.append(text[end + i])
            return tuple(text[len(tokens) :])
    return ()


@pytest.mark.parametrize("gamma", [1, 2, 3])
def test_guesses_are_what_a_search_finds(gamma: int) -> None:
    """Texts of few words grow by one to three tokens; guesses are wanted now and then, of several sequences."""
    draw = random.Random(gamma)
    live = slots()["drafter"].make(f"copyspec:gamma={gamma},length=5").start(no_model, laws=False)
    texts: dict[int, list[int]] = {seq: [] for seq in range(3)}
    found = 0
    for _ in range(400):
        seq = draw.randrange(3)
        texts[seq] += draw.choices(range(4), k=draw.randint(1, 3))
        room = draw.randint(1, 7)
        want = searched(texts[seq], gamma, min(room, 5)) if len(texts[seq]) >= gamma else ()
        assert live.copied(seq, texts[seq], room) == want
        found += bool(want)
        if draw.random() < 0.02:
            live.forget(seq)  # it begins anew, from whatever it is shown next
    assert found > 200


@pytest.mark.parametrize("spec", ["copyspec:gamma=0", "copyspec:length=65", "copyspec:gamma=a", "copyspeck"])
def test_options_that_are_none(spec: str) -> None:
    with pytest.raises(ConfigError):
        slots()["drafter"].make(spec)


PROMPTS = [tuple([3, 1, 4, 1, 5, 9, 2, 6] * 3), (7,), tuple(range(9, 20)), (5, 5, 5, 5)]
PARAMS = {
    "greedy": SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, logprobs=1),
    "sampled": SamplingParams(temperature=0.3, seed=3, max_tokens=30, ignore_eos=True, n=2),
    "penalised": SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, frequency_penalty=0.2),
}


def engine(model: str, drafter: str, **options: object) -> Engine:
    stack = {**models.stack(model), "policy": "sarathi:tokens=8,idle=12"}
    if drafter:
        stack |= {"drafter": drafter, "draft-budget": "fixed:tokens=10"}  # the same on any machine
    sizes = {"page_tokens": models.page_tokens(model)[-1], "threads": 1, **options}
    return Engine(EngineConfig(stack=stack, **sizes), decoder=models.decoder(model), poison=True)


def answers(made: Engine, params: SamplingParams) -> Outputs:
    for i, prompt in enumerate(PROMPTS):
        made.add(Request(id=f"r{i}", prompt=prompt, params=params, arrival=float(i)))
    found = collect(made)
    nothing_left(made)
    return found


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("model", ["full", "mixed", "int4", "int8_windows"])
def test_the_same_tokens_in_fewer_steps(model: str, params: str) -> None:
    plain, drafted = engine(model, ""), engine(model, "copyspec:gamma=2")
    assert answers(drafted, PARAMS[params]) == answers(plain, PARAMS[params])
    if params == "greedy":  # a small random model repeats itself before long
        assert drafted.counters.accepted_tokens > 3
        assert model == "mixed" or drafted.counters.steps < plain.counters.steps


@pytest.mark.parametrize("preempt", ["recompute", "swap"])
def test_pauses_forks_and_cancels(preempt: str) -> None:
    """A pool that holds hardly more than one of them; a fork on the way; one that leaves."""
    asks = [
        Ask(
            Request(id=f"r{i}", prompt=prompt, params=PARAMS["greedy"], arrival=float(i)), step=i, cancel=None
        )
        for i, prompt in enumerate(PROMPTS)
    ]
    asks[1] = Ask(asks[1].request, 1, cancel=6)
    forks = [Fork("r0", "child", step=9, seed=1)]
    runs = []
    for drafter in ("", "copyspec:gamma=1"):
        made = _tight(drafter, preempt)
        runs.append(scripted(made, asks, forks))
        nothing_left(made)
    plain, drafted = runs
    for name in ("r0", "r2", "r3"):
        assert drafted.outputs[name, 0] == plain.outputs[name, 0]
    assert drafted.outputs["child", 0][-10:] == plain.outputs["child", 0][-10:]


def _tight(drafter: str, preempt: str) -> Engine:
    roomy = engine("full", drafter)
    pages = roomy.stats().pages
    room = 16 * roomy.kv.tables.sizes.page_bytes
    assert 16 < pages
    options = {"preempt": "swap", "swap_bytes": 4 * room} if preempt == "swap" else {}
    return engine("full", drafter, kv_bytes=room, context=60, **options)
