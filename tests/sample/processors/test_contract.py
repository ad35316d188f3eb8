"""Every processor leaves something to choose from, and its states can be copied, taken back and made anew."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headrace.sample.processors import SLOT, Processor, State
from headrace.types import SamplingParams
from tests.kv.contract import members

VOCAB = 24
END = (0, 5)
"""The model's end tokens."""
NOTHING = SamplingParams()
EVERYTHING = SamplingParams(
    temperature=0.7,
    top_k=6,
    top_p=0.8,
    min_p=0.05,
    repetition_penalty=1.4,
    presence_penalty=0.6,
    frequency_penalty=0.3,
    logit_bias={3: 2.5, 7: -100.0, 11: 100.0},
    min_tokens=4,
    max_tokens=50,
    stop_token_ids=(9,),
)
"""A request that asks something of every processor that a request can ask something of."""

each_processor = pytest.mark.parametrize("name", members(SLOT))
tokens_of = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8)
QUICK = settings(max_examples=40, deadline=None, derandomize=True)


def logits(seed: int, dtype: torch.dtype = torch.float64, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(VOCAB, generator=generator, dtype=torch.float64) * scale).to(dtype)


def start(
    name: str, prompt: Sequence[int], output: Sequence[int] = (), params: SamplingParams = EVERYTHING
) -> State | None:
    processor: Processor = SLOT.make(name)
    return processor.init(params, [*prompt, *output], len(prompt), END)


def after(state: State | None, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """What comes of some logits."""
    given = logits(seed, dtype)
    return given if state is None else state.apply(given)


def same(one: State | None, other: State | None) -> bool:
    return all(torch.equal(after(one, seed), after(other, seed)) for seed in (1, 2))


@pytest.mark.parametrize("name", [part.partition(":")[0] for part in SLOT.default.split("+")])
def test_a_plain_request_costs_nothing_in_the_default_stack(name: str) -> None:
    assert start(name, [1, 2], params=NOTHING) is None
    assert start(name, [1, 2], params=SamplingParams(temperature=0)) is None
    assert start(name, [1, 2]) is not None, "this suite tests nothing of it"


@each_processor
@pytest.mark.parametrize("params", [NOTHING, EVERYTHING], ids=["nothing", "everything"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1.0, 40.0])
def test_something_stays_allowed(name: str, params: SamplingParams, dtype: torch.dtype, scale: float) -> None:
    """And it is something that was allowed before: here, one of a few tokens that do not end the text."""
    for seed in range(10):
        state = start(name, [1, 2, 3], [2, 8], params)
        if state is None:
            return
        given = logits(seed, dtype, scale)
        forbidden = torch.ones(VOCAB, dtype=torch.bool).index_fill(0, torch.tensor([1, 6, 9, 14, 20]), False)
        for narrowed in (given, given.masked_fill(forbidden, -torch.inf)):
            allowed = narrowed.isfinite()
            made = state.apply(narrowed.clone())
            assert made.shape == (VOCAB,) and made.dtype == dtype
            assert not bool(made.isnan().any()) and not bool((made == torch.inf).any())
            assert bool(made.isfinite().any()), "nothing can be chosen"
            assert bool((made.isfinite() <= allowed).all()), "a forbidden token is allowed again"


@each_processor
@QUICK
@given(prompt=tokens_of, output=tokens_of)
def test_looking_is_not_remembering(name: str, prompt: list[int], output: list[int]) -> None:
    """apply may be called again, and on other rows between: only accept changes a state."""
    state = start(name, prompt, output)
    first = after(state, 1)
    after(state, 2)
    assert torch.equal(after(state, 1), first)


@each_processor
@QUICK
@given(prompt=tokens_of, output=tokens_of, more=tokens_of)
def test_accepting_equals_starting_later(
    name: str, prompt: list[int], output: list[int], more: list[int]
) -> None:
    """An exact processor's state follows from the tokens, so a sequence that starts over goes on as before."""
    if SLOT.make(name).card.exact != "bits":
        pytest.skip("not exact")
    state = start(name, prompt, output)
    for count, token in enumerate(more, 1):
        if state is not None:
            state.accept(token)
        assert same(state, start(name, prompt, output + more[:count]))


@each_processor
@QUICK
@given(prompt=tokens_of, output=tokens_of, more=tokens_of, back=st.integers(0, 8))
def test_rollback_undoes_accept(
    name: str, prompt: list[int], output: list[int], more: list[int], back: int
) -> None:
    state, twin = start(name, prompt, output), start(name, prompt, output)
    if state is None or twin is None:
        return
    back = min(back, len(more))
    for token in more:
        state.accept(token)
    state.rollback(back)
    for token in more[: len(more) - back]:
        twin.accept(token)
    assert same(state, twin)
    for token in [*more[::-1], 3, 3]:  # and it goes on from there
        state.accept(token)
        twin.accept(token)
    assert same(state, twin)


@each_processor
@QUICK
@given(prompt=tokens_of, common=tokens_of, left=tokens_of, right=tokens_of)
def test_forks_go_their_own_ways(
    name: str, prompt: list[int], common: list[int], left: list[int], right: list[int]
) -> None:
    """Either branch is what it would be without the other, also when one of them goes back over the fork."""
    parent, alone = start(name, prompt), start(name, prompt)
    if parent is None or alone is None:
        return
    for token in common:
        parent.accept(token)
        alone.accept(token)
    child = parent.fork()
    assert same(child, parent)
    for token in right:
        child.accept(token)
    assert same(parent, alone)
    child.rollback(len(right) + len(common))
    assert same(parent, alone) and same(child, start(name, prompt))
    for token in left:
        parent.accept(token)
    assert same(child, start(name, prompt))
