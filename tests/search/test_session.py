"""Sessions on the model in the box: branches that go on from each other, what they share, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from headrace.box.tasks import chain_prefix, check_chain, examples
from headrace.errors import ConfigError
from headrace.llm import LLM
from headrace.search.answer import Branch, Search
from headrace.search.rounds import answers
from headrace.search.session import Session
from headrace.search.strategies import SLOT

EXAMPLE = examples("chain", 1, 0)[0]


@pytest.fixture(scope="module")
def llm():
    with LLM("tiny") as llm:
        yield llm


def grown(llm: LLM, session: Session, branches: Sequence[Branch], *, whole: bool = False) -> list[Branch]:
    [found] = answers(llm, [session.grow(branches, whole=whole)])
    return found


def test_steps_end_at_the_delimiter(llm: LLM) -> None:
    session = Session(llm, EXAMPLE.prompt, stop=EXAMPLE.stop, seed=1)
    [first] = grown(llm, session, [session.root])
    [second] = grown(llm, session, [first])
    assert first.text.count("\n") == 1 and first.text.endswith("\n") and first.steps == 1
    assert second.text.startswith(first.text) and second.tokens[: len(first.tokens)] == first.tokens
    assert second.logprob < first.logprob < 0
    assert session.cost.new_tokens == len(second.tokens)


def test_a_step_ends_where_the_answer_does(llm: LLM) -> None:
    """Though no delimiter comes before."""
    session = Session(llm, EXAMPLE.prompt, stop="=", delimiter="answer", seed=1)
    [branch] = grown(llm, session, [session.root])
    assert branch.ended and llm.tokenizer.decode(branch.tokens).index("=") == len(branch.text)
    assert llm.tokenizer.decode(branch.tokens[:-1]) == branch.text


def test_a_branch_grows_many_ways_and_the_same_again(llm: LLM) -> None:
    def texts() -> list[str]:
        session = Session(llm, EXAMPLE.prompt, stop=EXAMPLE.stop, temperature=1.5, seed=4)
        [first] = grown(llm, session, [session.root])
        return [branch.text for branch in grown(llm, session, [first] * 8)]

    found = texts()
    assert len(set(found)) > 1 and texts() == found


def test_what_branches_share_is_not_computed_again(llm: LLM) -> None:
    session = Session(llm, EXAMPLE.prompt * 4, stop=EXAMPLE.stop)
    branches = grown(llm, session, [session.root])
    before = session.cost.cached_tokens
    grown(llm, session, branches * 4)
    prompt = len(llm.tokenizer.encode(EXAMPLE.prompt * 4))
    assert session.cost.cached_tokens - before >= 4 * (prompt // 16 * 16 - 16)


def test_whole_answers_are_what_the_model_samples(llm: LLM) -> None:
    session = Session(llm, EXAMPLE.prompt, stop=EXAMPLE.stop, seed=2)
    branches = grown(llm, session, [session.root] * 4, whole=True)
    assert all(branch.ended and EXAMPLE.stop not in branch.text for branch in branches)
    assert grown(llm, session, branches) == branches, "what is done stays as it is"


def test_a_budget_cuts_and_changes_nothing(llm: LLM) -> None:
    """Shared out evenly, and again what is left: enough for all is enough, and less is spent to the last token.

    Also where a cut falls into the text that ends an answer, which is two tokens.
    """

    def whole(budget: int | None) -> tuple[Session, list[Branch]]:
        session = Session(llm, EXAMPLE.prompt, stop="\nanswer", temperature=1.0, budget_tokens=budget, seed=4)
        return session, grown(llm, session, [session.root] * 5, whole=True)

    free, branches = whole(None)
    lengths = [len(branch.tokens) for branch in branches]
    assert len(set(lengths)) > 1, "some need more than their share"
    for budget in range(sum(lengths), 5 * max(lengths) + 1):
        session, found = whole(budget)
        assert found == branches and session.cost.new_tokens == free.cost.new_tokens
    for budget in (3, 5, sum(lengths) // 2, sum(lengths) - 1):
        session, found = whole(budget)
        assert session.exhausted and session.cost.new_tokens == budget
        for one, other in zip(found, branches, strict=True):
            assert one.tokens == other.tokens[: len(one.tokens)]
        assert (
            max(len(one.tokens) for one in found) - min(len(one.tokens) for one in found) <= max(lengths) // 2
        )
        assert grown(llm, session, found) == found


def test_searches_side_by_side_find_what_they_find_alone(llm: LLM) -> None:
    """Whatever the strategy, and though some end rounds before others."""

    def score(texts: Sequence[str]) -> list[float]:
        return [len(text) % 10 / 10 for text in texts]

    def searches() -> list[Search]:
        sessions = [
            Session(llm, e.prompt, stop=e.stop, seed=i, budget_tokens=150)
            for i, e in enumerate(examples("chain", len(SLOT.index), 5))
        ]
        return [
            SLOT.make(name).search(session, score, lambda text: text[-3:])
            for name, session in zip(SLOT.index, sessions, strict=True)
        ]

    together = answers(llm, searches())
    alone = [answers(llm, [one])[0] for one in searches()]
    for one, other in zip(together, alone, strict=True):
        assert (one.text, one.score, one.cost.new_tokens) == (other.text, other.score, other.cost.new_tokens)
        assert [branch.tokens for branch in one.branches] == [branch.tokens for branch in other.branches]
    assert answers(llm, []) == []


def test_a_search_solves_what_a_sample_seldom_does(llm: LLM) -> None:
    """With a scorer that knows whether all lines so far are right."""
    searches = []
    made = examples("chain", 4, 7)
    for example in made:

        def score(texts, example=example):
            return [0.95 if chain_prefix(example, text)[1] else 0.05 for text in texts]

        session = Session(llm, example.prompt, stop=example.stop, temperature=1.0, budget_tokens=1500)
        searches.append(SLOT.make("particle:n=8").search(session, score, None))
    found = answers(llm, searches)
    assert sum(check_chain(example, one.text) for example, one in zip(made, found, strict=True)) >= 3


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
