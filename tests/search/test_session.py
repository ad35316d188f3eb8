"""Sessions on the model in the box: branches that go on from each other, what they share, and what they cost."""

from __future__ import annotations

import pytest

from headrace.box.tasks import chain_prefix, check_chain, examples
from headrace.errors import ConfigError
from headrace.llm import LLM
from headrace.search.session import Session
from headrace.search.strategies import SLOT

EXAMPLE = examples("chain", 1, 0)[0]


@pytest.fixture(scope="module")
def llm():
    with LLM("tiny") as llm:
        yield llm


def test_steps_end_at_the_delimiter(llm: LLM) -> None:
    session = Session(llm, EXAMPLE.prompt, stop=EXAMPLE.stop, seed=1)
    [first] = session.grow([session.root])
    [second] = session.grow([first])
    assert first.text.count("\n") == 1 and first.text.endswith("\n") and first.steps == 1
    assert second.text.startswith(first.text) and second.tokens[: len(first.tokens)] == first.tokens
    assert second.logprob < first.logprob < 0
    assert session.cost.new_tokens == len(second.tokens)


def test_a_branch_grows_many_ways_and_the_same_again(llm: LLM) -> None:
    def texts() -> list[str]:
        session = Session(llm, EXAMPLE.prompt, stop=EXAMPLE.stop, temperature=1.5, seed=4)
        [first] = session.grow([session.root])
        return [branch.text for branch in session.grow([first] * 8)]

    found = texts()
    assert len(set(found)) > 1 and texts() == found


def test_what_branches_share_is_not_computed_again(llm: LLM) -> None:
    session = Session(llm, EXAMPLE.prompt * 4, stop=EXAMPLE.stop)
    branches = session.grow([session.root])
    before = session.cost.cached_tokens
    session.grow(branches * 4)
    prompt = len(llm.tokenizer.encode(EXAMPLE.prompt * 4))
    assert session.cost.cached_tokens - before >= 4 * (prompt // 16 * 16 - 16)


def test_whole_answers_are_what_the_model_samples(llm: LLM) -> None:
    session = Session(llm, EXAMPLE.prompt, stop=EXAMPLE.stop, seed=2)
    branches = session.grow([session.root] * 4, whole=True)
    assert all(branch.ended and EXAMPLE.stop not in branch.text for branch in branches)
    assert session.grow(branches) == branches, "what is done stays as it is"


def test_a_budget_is_kept(llm: LLM) -> None:
    session = Session(llm, EXAMPLE.prompt, stop=EXAMPLE.stop, budget_tokens=25)
    branches = [session.root] * 3
    while not session.exhausted:
        branches = session.grow(branches)
    assert session.cost.new_tokens <= 25
    assert session.grow(branches) == branches


def test_a_search_solves_what_a_sample_seldom_does(llm: LLM) -> None:
    """With a scorer that knows whether all lines so far are right."""
    right = 0
    for example in examples("chain", 4, 7):

        def score(texts, example=example):
            return [0.95 if chain_prefix(example, text)[1] else 0.05 for text in texts]

        session = Session(llm, example.prompt, stop=example.stop, temperature=1.0, budget_tokens=1500)
        answer = SLOT.make("particle:n=8").run(session, score, None)
        right += check_chain(example, answer.text)
    assert right >= 3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperature": 0}, "temperature 0"),
        ({"delimiter": ""}, "delimiter"),
        ({"budget_tokens": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_searched(llm: LLM, options: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Session(llm, EXAMPLE.prompt, **options)
