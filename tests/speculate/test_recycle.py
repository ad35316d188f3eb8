"""recycle: the table is what the model said last, the tree is grown from it best first, and no token changes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.forward.runner import Logits
from headrace.llm import LLM
from headrace.params import SamplingParams
from headrace.slots import slots
from headrace.speculate.drafters.recycle import TABLES, LiveRecycle, shape
from headrace.speculate.tree import Draft
from headrace.types import Batch, Request, Sequence
from tests.whole import models
from tests.whole.drive import Outputs, nothing_left

VOCAB = 12


def sequence(last: int, salt: str = "") -> Sequence:
    request = Request(id="r", prompt=(last,), params=SamplingParams(), salt=salt)
    return Sequence(1, request, 0, 0, [last], 1)


def taught(successors: dict[int, list[int]], top: int = 3, salt: str = "") -> LiveRecycle:
    """Logits whose largest are these, best first."""
    live = LiveRecycle(top, 80)
    for token, best in successors.items():
        logits_RV = torch.full((1, VOCAB), -9.0)
        logits_RV[0, best] = -torch.arange(len(best), dtype=torch.float32)
        live.learn(sequence(token, salt), (token,), logits_RV)
    return live


def test_the_papers_tree() -> None:
    levels = Counter[int]()
    depth = {-1: 0}
    for guess, (parent, _) in enumerate(shape(80, 8)):
        depth[guess] = depth[parent] + 1
        levels[depth[guess]] += 1
    assert all(abs(levels[i + 1] - n) <= 2 for i, n in enumerate((8, 21, 25, 15, 8, 3)))
    for count in (1, 7, 40):
        assert shape(count, 8) == shape(80, 8)[:count], "fewer guesses are the best of more"
    assert len(set(shape(80, 8))) == 80


def test_successors_of_successors() -> None:
    live = taught({5: [6, 7, 8], 6: [9, 5, 1], 7: [5, 6, 2]})
    draft = live.propose(sequence(5), room=4, depth=9)
    paths = {path_of(draft, guess) for guess in range(len(draft.tokens))}
    assert {(6,), (6, 9), (7,)} <= paths and len(paths) == 4
    whole = live.propose(sequence(5), room=80, depth=2)
    assert {path_of(whole, guess) for guess in range(len(whole.tokens))} == {
        *((first,) for first in (6, 7, 8)),
        *((6, after) for after in (9, 5, 1)),
        *((7, after) for after in (5, 6, 2)),
    }, "nothing is known of what follows 8"


def path_of(draft: Draft, guess: int) -> tuple[int, ...]:
    assert draft.parents is not None
    before = path_of(draft, draft.parents[guess]) if draft.parents[guess] >= 0 else ()
    return (*before, draft.tokens[guess])


def test_the_last_word_stays() -> None:
    live = LiveRecycle(2, 8)
    logits_RV = torch.zeros(3, VOCAB)
    logits_RV[0, 1], logits_RV[1, 2], logits_RV[2, 3] = 5.0, 5.0, 5.0
    live.learn(sequence(4), (4, 9, 4), logits_RV)
    assert live.propose(sequence(4), room=1, depth=1).tokens == (3,)
    live.learn(sequence(4), (4,), logits_RV[:1])
    assert live.propose(sequence(4), room=1, depth=1).tokens == (1,)
    assert live.propose(sequence(9), room=1, depth=1).tokens == (2,)
    assert live.propose(sequence(7), room=9, depth=9) == Draft((), ())


def test_tenants_learn_nothing_from_each_other() -> None:
    live = taught({5: [6]}, salt="one")
    assert live.propose(sequence(5, "one"), 4, 4).tokens and not live.propose(sequence(5), 4, 4).tokens
    for tenant in range(TABLES):
        live.learn(sequence(5, f"t{tenant}"), (5,), torch.zeros(1, VOCAB))
    assert not live.propose(sequence(5, "one"), 4, 4).tokens, "and there are not more tables than that"


def run(
    drafter: str, params: SamplingParams, prepare: Callable[[Engine], None] = lambda made: None
) -> tuple[Outputs, Engine]:
    stack = {"policy": "sarathi:tokens=6"}
    if drafter:
        stack |= {"drafter": drafter, "draft-budget": "fixed:tokens=9"}
    config = EngineConfig(stack=stack, page_tokens=4, threads=1, kv_bytes=1 << 19)
    made = Engine(config, decoder=models.decoder("mixed"), poison=True)
    for i, length in enumerate((19, 3, 11)):
        prompt = tuple((7 * i + 5 * k) % models.VOCAB for k in range(length))
        made.add(Request(id=str(i), prompt=prompt, params=params, arrival=float(i)))
    prepare(made)
    found: Outputs = {}
    while made.busy:
        with contextlib.suppress(MemoryError):
            for delta in made.step():
                found.setdefault((delta.request, delta.index), []).extend(delta.tokens)
    nothing_left(made)
    return found, made


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_the_same_tokens(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=5, max_tokens=30, ignore_eos=True)
    plain, one = run("", params)
    drafted, other = run("recycle:top=4", params)
    assert drafted == plain and other.counters.drafted_tokens > 0
    assert other.counters.accepted_tokens > 0 and other.counters.steps < one.counters.steps


def test_a_step_that_fails_with_a_tree_loses_nothing() -> None:
    params = SamplingParams(temperature=0.8, seed=5, max_tokens=30, ignore_eos=True)
    plain, _ = run("", params)
    failed = list[int]()

    def failing(made: Engine) -> None:
        forward = made.runner.forward

        def sometimes(batch: Batch) -> Logits:
            if batch.written and made.counters.steps not in failed and made.counters.steps % 3 == 0:
                failed.append(made.counters.steps)
                raise MemoryError
            return forward(batch)

        made.runner.forward = sometimes  # type: ignore[method-assign]

    assert run("recycle", params, failing)[0] == plain and len(failed) > 3


def test_the_box_gains() -> None:
    """More than a token per step, and more yet where the table has seen it."""
    prompt, params = "def main():\n    ", SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)
    steps, texts = [0], list[tuple[int, ...]]()
    with LLM("tiny", stack={"drafter": "recycle", "draft-budget": "fixed:tokens=16"}) as llm:
        for _ in range(2):
            texts.append(tuple(llm.generate(prompt, params)[0].samples[0].token_ids))
            steps.append(llm.engine.counters.steps)
    cold, warm = steps[1], steps[2] - steps[1]
    assert texts[0] == texts[1] and warm < cold < 0.9 * 48


@pytest.mark.parametrize(
    "spec", ["recycle:top=0", "recycle:top=33", "recycle:guesses=0", "recycle:guesses=257"]
)
def test_options_that_are_none(spec: str) -> None:
    with pytest.raises(ConfigError):
        slots()["drafter"].make(spec)


def test_laws_are_refused() -> None:
    stack = {"drafter": "recycle", "verifier": "rejection"}
    with pytest.raises(ConfigError, match=r"draws nothing.*sample_match"):
        Engine(EngineConfig(stack=stack, threads=1), decoder=models.decoder("full"))
