"""The engine, with pages, chunks and batches, against the naive way."""

from __future__ import annotations

import pytest

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.kv.layouts import SLOT as LAYOUTS
from headrace.params import SamplingParams
from headrace.schedule.policies import SLOT as POLICIES
from headrace.types import Request
from tests.forward import dense
from tests.kv.contract import members
from tests.whole import models

PROMPTS = [[(11 * i * i + 5 * i) % models.VOCAB for i in range(29)], [3], [7, 7, 7, 7, 7, 8] * 5]
COUNT = 40
GREEDY = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)


def greedy(model: str, **options: object) -> list[list[int]]:
    """All prompts at once."""
    engine = Engine(EngineConfig(threads=1, **options), decoder=models.decoder(model), poison=True)
    for i, prompt in enumerate(PROMPTS):
        engine.add(Request(id=str(i), prompt=tuple(prompt), params=GREEDY, arrival=float(i)))
    answers: list[list[int]] = [[] for _ in PROMPTS]
    while engine.busy:
        for delta in engine.step():
            answers[int(delta.request)] += delta.tokens
    return answers


@pytest.fixture(scope="module")
def expected() -> dict[str, list[list[int]]]:
    return {
        model: [dense.decode(models.decoder(model), prompt, COUNT) for prompt in PROMPTS]
        for model in models.WINDOWS
    }


@pytest.mark.parametrize("model", models.WINDOWS)
@pytest.mark.parametrize("layout", members(LAYOUTS))
def test_every_layout_gives_the_naive_tokens(
    model: str, layout: str, expected: dict[str, list[list[int]]]
) -> None:
    stack = {"policy": "sarathi:tokens=6,idle=10", "kv-layout": layout}
    assert greedy(model, stack=stack, page_tokens=4) == expected[model]


@pytest.mark.parametrize("model", models.WINDOWS)
@pytest.mark.parametrize("policy", members(POLICIES))
def test_every_policy_gives_the_naive_tokens(
    model: str, policy: str, expected: dict[str, list[list[int]]]
) -> None:
    assert greedy(model, stack={"policy": policy}, page_tokens=8, prefix_cache=False) == expected[model]


def test_the_models_tell_tokens_apart(expected: dict[str, list[list[int]]]) -> None:
    """Answers that were all alike, or repeated one token, would prove little."""
    for answers in expected.values():
        assert sum(len(set(answer)) > 5 for answer in answers) >= 2
    assert len({str(answers) for answers in expected.values()}) == len(expected)
