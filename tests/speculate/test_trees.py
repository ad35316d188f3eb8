"""Draft trees through the whole engine: wherever the right path lies in one, tokens are those of decoding without."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest

from headrace import kernels
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.kv.branches import Branch, branches, ends, right_branch
from headrace.params import SamplingParams
from headrace.speculate.draft import extend
from headrace.speculate.tree import Draft, depth_first, first, pruned
from headrace.types import Request, Sequence, Span, StepPlan
from tests.kv.test_tables import make, started
from tests.whole import models
from tests.whole.drafting import Drafting, logprobs, plan_by, run, tokens

PARAMS = {
    "greedy": SamplingParams(temperature=0, max_tokens=21, ignore_eos=True, logprobs=2),
    "sampled": SamplingParams(
        temperature=1.2, seed=3, max_tokens=17, ignore_eos=True, top_p=0.9, n=2, logprobs=0
    ),
    "penalised": SamplingParams(
        temperature=0, max_tokens=20, repetition_penalty=1.5, frequency_penalty=0.6, logprobs=0
    ),
}


# ---- shapes ----

#       0         8
#     / | \       |
#    1  2  6      9
#       |\  \
#       3 5  7
#       4
PARENTS = (-1, 0, 0, 2, 3, 2, 0, 6, -1, 8)
TREE = Span(1, 4, 6, tuple(range(10)), PARENTS)


def test_branches() -> None:
    assert branches(TREE) == (
        Branch((0, 1), 2),
        Branch((0, 2, 3, 4), 3),
        Branch((0, 2, 5), 1),
        Branch((0, 6, 7), 2),
        Branch((8, 9), 2),
    )
    assert ends(TREE) == [8, 10, 9, 9, 8] and TREE.end == 10 and len(TREE) == 12
    assert TREE.positions == [4, 5, 6, 7, 7, 8, 9, 8, 7, 8, 6, 7]
    assert [TREE.below(guess) for guess in (-1, 0, 2, 4)] == [(0, 8), (1, 2, 6), (3, 5), ()]


@pytest.mark.parametrize(
    ("accepted", "branch"),
    [((), 0), ((77,), 0), ((0,), 0), ((0, 2, 77), 1), ((0, 2, 5, 3), 2), ((0, 6), 3), ((8, 0), 4)],
)
def test_the_branch_that_stays(accepted: tuple[int, ...], branch: int) -> None:
    assert right_branch(TREE, accepted) == branch


def test_any_order_is_a_tree() -> None:
    """Breadth first, more branches begin where others go on, and all guesses are in one."""
    breadth = replace(TREE, parents=(-1, -1, 0, 0, 1), draft=(5, 6, 7, 8, 9))
    assert {guess for branch in branches(breadth) for guess in branch.guesses} == set(range(5))
    assert sum(branch.own for branch in branches(breadth)) == 5


def test_drafts_are_cut_to_what_there_is_room_for() -> None:
    draft = Draft((1, 2, 3, 4, 5), (-1, -1, 0, 0, 2))
    assert pruned(draft, 9, 9) == draft and pruned(draft, 4, 9) == first(draft, range(4))
    assert pruned(draft, 9, 2) == Draft((1, 2, 3, 4), (-1, -1, 0, 0))
    assert pruned(draft, 9, 1) == Draft((1, 2), (-1, -1)) and pruned(draft, 0, 9).tokens == ()
    assert depth_first(draft) == Draft((1, 3, 5, 4, 2), (-1, 0, 1, 0, -1))
    assert depth_first(first(draft, [0, 2, 4])) == Draft((1, 3, 5), None), "a chain is no tree"


# ---- in the engine ----


@dataclass
class Planting(Drafting):
    """Trees; the right path lies in one, as far as luck has it."""

    most: int = 12

    def draft(self, span: Span, seq: Sequence, known: list[int]) -> Span:
        luck = random.Random(1000 * span.seq + span.stop)
        draft = pruned(planted(known, luck, luck.randint(1, self.most)), self.most, len(known))
        if luck.random() < 0.7:
            draft = depth_first(draft)
        return replace(span, draft=draft.tokens, parents=draft.parents)


def planted(known: list[int], luck: random.Random, count: int) -> Draft:
    """A random tree; a guess on the right path is right if no other of its place is, and luck has it."""
    tokens, parents, right = list[int](), list[int](), {-1: 0}
    for guess in range(count):
        parent = luck.choice([-1, *range(guess)][-4:])
        beside = {token for token, other in zip(tokens, parents, strict=True) if other == parent}
        at = right.get(parent)
        if at is not None and at < len(known) and known[at] not in beside and luck.random() < 0.7:
            tokens.append(known[at])
            right[guess] = at + 1
        else:
            tokens.append(luck.choice([t for t in range(1, models.VOCAB) if t not in beside]))
            if at is not None and at < len(known) and tokens[-1] == known[at]:
                right[guess] = at + 1
        parents.append(parent)
    return Draft(tuple(tokens), tuple(parents))


def engine(model: str, **options: object) -> Engine:
    stack = {"policy": "sarathi:tokens=8,idle=12", **models.stack(model)}
    options = {"page_tokens": models.page_tokens(model)[-1], "kv_bytes": 1 << 20, **options}
    return Engine(EngineConfig(stack=stack, threads=1, **options), decoder=models.decoder(model), poison=True)


@pytest.mark.parametrize(
    ("model", "params"),
    [(model, "greedy") for model in (*models.WINDOWS, *models.BLOCKS, *models.NATIVE)]
    + [(model, params) for model in ("mixed", "kivi_windows", "int4") for params in ("sampled", "penalised")],
)
def test_tokens_do_not_depend_on_trees(model: str, params: str) -> None:
    plain = engine(model)
    truth = run(plain, PARAMS[params])
    drafted = engine(model)
    plan_by(drafted, Planting(drafted.policy, drafted, truth))
    answers = run(drafted, PARAMS[params])
    assert tokens(answers) == tokens(truth)
    native = model in models.NATIVE and kernels.isa() != kernels.REFERENCE
    assert logprobs(answers) == (
        logprobs(truth)
        if native
        else pytest.approx(logprobs(truth), abs=1e-5 if model in models.NATIVE else 1e-9)
    )
    assert drafted.counters.steps < plain.counters.steps, "some were right"


@pytest.mark.parametrize("page_tokens", [1, 3, 16])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_branches_may_cross_pages(page_tokens: int, prefix_cache: bool) -> None:
    options = {"page_tokens": page_tokens, "prefix_cache": prefix_cache}
    truth = run(engine("mixed", **options), PARAMS["greedy"])
    drafted = engine("mixed", **options)
    plan_by(drafted, Planting(drafted.policy, drafted, truth, most=20))
    assert tokens(run(drafted, PARAMS["greedy"])) == tokens(truth)


@pytest.mark.parametrize("pages", range(3, 14))
def test_a_tree_is_cut_to_the_pages_that_nobody_needs(pages: int) -> None:
    """Pages of four tokens, the third begun; a page stays for the next step."""
    tables = make(pages=pages, cache=False)
    started(tables, 1, 9)
    tables.reserve(1, 9, 10)
    draft = Draft((1, 2, 3, 4, 5, 6), (-1, -1, 0, 0, 2, 1))
    seq = Sequence(1, Request(id="r", prompt=(1,) * 10, params=SamplingParams()), 0, 0, [1] * 10, 10)
    before = tables.available
    plan = extend(StepPlan((Span(1, 9, 10),)), lambda *_: draft, tables, {1: seq}, 96, None)
    (span,) = plan.spans
    assert tables.available >= min(1, before)
    assert set(span.draft) == set(range(1, len(span.draft) + 1)), "the last ones are left out"
    assert len(tables.branches(1)) == len(ends(span))
    assert len(span.draft) == (6 if pages >= 10 else len(span.draft)) and (pages < 6 or span.draft)
    tables.settle(1, 0)
    tables.check()
