"""Every processor leaves something to choose from, and its states can be copied, taken back and made anew."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from headrace.params import SamplingParams
from headrace.sample.processors import SLOT, Processor, State
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
    allowed_token_ids=(0, 1, 2, 3, 5, 6, 9, 14, 20, 23),
    bad_words_ids=((6,), (2, 8, 2), (3, 3), (9, 20)),
    min_tokens=4,
    max_tokens=50,
    stop_token_ids=(9,),
)
"""A request that asks something of every processor that a request can ask something of."""

each_processor = pytest.mark.parametrize("name", members(SLOT))
each_output = pytest.mark.parametrize("output", [[], [2], [2, 8, 2], [3, 3, 0, 5, 9]], ids=len)
PROMPT = [1, 2, 2, 7]
MORE = [2, 5, 3, 3, 9, 20, 2, 0, 8]
"""What is accepted: words of the prompt, repetitions, tokens that end the text and new ones."""


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
@each_output
def test_looking_is_not_remembering(name: str, output: list[int]) -> None:
    """apply may be called again, and on other rows between: only accept changes a state."""
    state = start(name, PROMPT, output)
    first = after(state, 1)
    after(state, 2)
    assert torch.equal(after(state, 1), first)


@each_processor
@each_output
def test_accepting_equals_starting_later(name: str, output: list[int]) -> None:
    """An exact processor's state follows from the tokens, so a sequence that starts over goes on as before."""
    if SLOT.make(name).card.exact != "bits":
        pytest.skip("not exact")
    state = start(name, PROMPT, output)
    for count, token in enumerate(MORE, 1):
        if state is not None:
            state.accept(token, logits(token))
        assert same(state, start(name, PROMPT, output + MORE[:count]))


@each_processor
@each_output
def test_rollback_undoes_accept(name: str, output: list[int]) -> None:
    """After any number of tokens, any number of them; and it goes on from there."""
    for length in range(len(MORE) + 1):
        for back in range(length + 1):
            state, twin = start(name, PROMPT, output), start(name, PROMPT, output)
            if state is None or twin is None:
                return
            for token in MORE[:length]:
                state.accept(token, logits(token))
            state.rollback(back)
            for token in MORE[: length - back]:
                twin.accept(token, logits(token))
            assert same(state, twin)
            for token in MORE[::-1]:
                state.accept(token, logits(token))
                twin.accept(token, logits(token))
            assert same(state, twin)


@each_processor
@pytest.mark.parametrize("common", [0, 1, 4])
@pytest.mark.parametrize("left", [1, 5])
@pytest.mark.parametrize("right", [1, 3, 6])
def test_forks_go_their_own_ways(name: str, common: int, left: int, right: int) -> None:
    """Either branch is what it would be without the other, also when one of them goes back over the fork."""
    parent, alone = start(name, PROMPT), start(name, PROMPT)
    if parent is None or alone is None:
        return
    for token in MORE[:common]:
        parent.accept(token, logits(token))
        alone.accept(token, logits(token))
    child = parent.fork()
    assert same(child, parent)
    for token in MORE[::-1][:right]:
        child.accept(token, logits(token))
    assert same(parent, alone)
    for token in MORE[common : common + left]:
        parent.accept(token, logits(token))
    child.rollback(right + common)
    assert same(child, start(name, PROMPT))
    parent.rollback(left)
    assert same(parent, alone)
    for token in MORE:
        child.accept(token, logits(token))
    assert same(child, start(name, PROMPT, MORE)) or SLOT.make(name).card.exact != "bits"
    assert same(parent, alone)
