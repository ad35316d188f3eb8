"""The processors against obvious twins in plain Python, and the corners of each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.params import SamplingParams
from headrace.sample.processors import SLOT

VOCAB = 12
QUICK = settings(max_examples=40, deadline=None, derandomize=True)
rows = st.lists(st.integers(-40, 40).map(lambda i: i / 8), min_size=VOCAB, max_size=VOCAB)
"""Coarse numbers, so that ties are common."""
tokens_of = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=10)
INF = math.inf


def apply(
    name: str,
    row: Sequence[float],
    prompt: Sequence[int] = (1,),
    output: Sequence[int] = (),
    eos: Sequence[int] = (),
    **params: object,
) -> list[float]:
    state = SLOT.make(name).init(SamplingParams(**params), [*prompt, *output], len(prompt), eos)
    given = torch.tensor(row, dtype=torch.float64)
    made: list[float] = (given if state is None else state.apply(given)).tolist()
    return made


def softmax(row: Sequence[float]) -> list[float]:
    top = max(row)
    shares = [math.exp(x - top) for x in row]
    return [share / math.fsum(shares) for share in shares]


def kept(row: Sequence[float]) -> set[int]:
    return {i for i, x in enumerate(row) if x > -INF}


# ---- twins ----


@QUICK
@given(rows, st.integers(1, VOCAB + 2))
def test_top_k(row: list[float], k: int) -> None:
    """A token stays if fewer than k are better: ties with the k-th stay."""
    made = apply("top_k", row, top_k=k)
    assert made == [x if sum(y > x for y in row) < k else -INF for x in row]


@QUICK
@given(rows, st.floats(0.01, 0.999))
def test_top_p(row: list[float], p: float) -> None:
    """A token stays if everything before it, likeliest first and lower ids first among equals, has less than p."""
    made = apply("top_p", row, top_p=p)
    probs = softmax(row)
    order = sorted(range(VOCAB), key=lambda i: (-row[i], i))
    before = [math.fsum(probs[j] for j in order[:rank]) for rank in range(VOCAB)]
    if any(abs(total - p) < 1e-9 for total in before):
        return  # rounding decides
    assert kept(made) == {token for rank, token in enumerate(order) if before[rank] < p}
    assert all(made[i] == row[i] for i in kept(made))


@QUICK
@given(rows, st.floats(0.001, 1))
def test_min_p(row: list[float], share: float) -> None:
    made = apply("min_p", row, min_p=share)
    probs = softmax(row)
    if any(math.isclose(prob, share * max(probs), rel_tol=1e-9) for prob in probs if prob < max(probs)):
        return  # rounding decides
    assert made == [
        x if prob >= share * max(probs) * (1 - 1e-9) else -INF for x, prob in zip(row, probs, strict=True)
    ]


@QUICK
@given(rows, tokens_of, st.lists(st.integers(0, VOCAB - 1), max_size=10), st.data())
def test_penalties(row: list[float], prompt: list[int], output: list[int], data: st.DataObject) -> None:
    repetition = data.draw(st.sampled_from([1.0, 0.5, 1.3, 2.0]))
    presence, frequency = (
        data.draw(st.sampled_from([0.0, -1.5, 0.7])),
        data.draw(st.sampled_from([0.0, 0.25, -2.0])),
    )
    expected = []
    for token, x in enumerate(row):
        if token in prompt or token in output:
            x = x / repetition if x > 0 else x * repetition
        if token in output:
            x -= presence
        expected.append(x - frequency * output.count(token))
    made = apply(
        "penalties",
        row,
        prompt,
        output,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
    )
    assert made == pytest.approx(expected, abs=1e-12)


@QUICK
@given(rows, st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=5))
def test_logit_bias(row: list[float], bias: dict[int, float]) -> None:
    made = apply("logit_bias", row, logit_bias=bias)
    assert made == pytest.approx([x + bias.get(token, 0) for token, x in enumerate(row)])


@QUICK
@given(rows, st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5))
def test_allowed_tokens(row: list[float], allowed: list[int]) -> None:
    made = apply("allowed_tokens", row, allowed_token_ids=allowed)
    assert made == [x if token in allowed else -INF for token, x in enumerate(row)]


@QUICK
@given(rows, st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=4), tokens_of)
def test_bad_words(row: list[float], words: list[list[int]], output: list[int]) -> None:
    """A token stays if no forbidden run would then end the output."""
    output = [token % 3 for token in output]
    made = apply("bad_words", row, output=output, bad_words_ids=words)
    ends = [[[*output, token][-len(word) :] for word in words] for token in range(VOCAB)]
    assert made == [
        -INF if any(end == word for end, word in zip(ends[token], words, strict=True)) else x
        for token, x in enumerate(row)
    ]


def test_a_bad_word_is_no_matter_of_the_prompt() -> None:
    assert apply("bad_words", [0.0] * VOCAB, prompt=[1], bad_words_ids=[[1, 2]])[2] == 0


@QUICK
@given(rows, st.sampled_from([0.1, 0.7, 2.0, 100.0]))
def test_temperature(row: list[float], temperature: float) -> None:
    assert apply("temperature", row, temperature=temperature) == pytest.approx([x / temperature for x in row])


# ---- corners ----


def test_the_likeliest_token_survives_the_strictest_request() -> None:
    row = [0.0] * 5 + [0.5] + [0.0] * 6
    for name, params in [("top_p", {"top_p": 1e-9}), ("top_k", {"top_k": 1}), ("min_p", {"min_p": 1.0})]:
        assert kept(apply(name, row, **params)) == {5}


def test_equals_of_the_best_all_survive_min_p_and_top_k() -> None:
    row = [1.0, 2.0, 2.0, 0.0] + [-1.0] * 8
    assert kept(apply("min_p", row, min_p=1.0)) == kept(apply("top_k", row, top_k=1)) == {1, 2}
    assert kept(apply("top_p", row, top_p=0.01)) == {1}


def test_filters_leave_what_was_forbidden_forbidden() -> None:
    row = [-INF, 2.0, -INF, 0.0] + [-INF] * 8
    for name, params in [("top_p", {"top_p": 0.99}), ("top_k", {"top_k": 9}), ("min_p", {"min_p": 0.01})]:
        assert kept(apply(name, row, **params)) == {1, 3}


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p"])
def test_greedy_requests_do_not_ask_for_filters(name: str) -> None:
    params = SamplingParams(temperature=0, top_k=3, top_p=0.5, min_p=0.3)
    assert SLOT.make(name).init(params, [1], 1, ()) is None


def test_no_end_before_min_tokens() -> None:
    row = [1.0] * VOCAB
    params = {"min_tokens": 2, "stop_token_ids": (7,)}
    assert kept(apply("min_tokens", row, eos=(0, 3), **params)) == set(range(VOCAB)) - {0, 3, 7}
    assert kept(apply("min_tokens", row, output=(4,), eos=(0, 3), **params)) == set(range(VOCAB)) - {0, 3, 7}
    assert kept(apply("min_tokens", row, output=(4, 4), eos=(0, 3), **params)) == set(range(VOCAB))
    assert kept(apply("min_tokens", row, eos=(), **params)) == set(range(VOCAB)) - {7}
    assert kept(apply("min_tokens", row, min_tokens=2)) == set(range(VOCAB)), "nothing could end it"


def test_min_tokens_counts_as_tokens_come() -> None:
    state = SLOT.make("min_tokens").init(SamplingParams(min_tokens=2), [1, 2, 3], 3, (0,))
    allowed = []
    for _ in range(4):
        allowed.append(0 in kept(state.apply(torch.zeros(VOCAB)).tolist()))
        state.accept(5, torch.zeros(VOCAB))
    assert allowed == [False, False, True, True]
    state.rollback(3)
    assert 0 not in kept(state.apply(torch.zeros(VOCAB)).tolist())


def test_the_prompt_counts_for_repetition_only() -> None:
    row = [1.0] * VOCAB
    assert apply("penalties", row, prompt=(2,), presence_penalty=1.0, frequency_penalty=1.0) == row
    assert apply("penalties", row, prompt=(2,), repetition_penalty=2.0)[2] == 0.5
    assert apply("penalties", row, prompt=(2, 2, 2), repetition_penalty=2.0)[2] == 0.5, "once, however often"


def test_the_order_of_the_default_stack() -> None:
    """Penalties before temperature before filters: what a filter keeps depends on what came before."""
    order = SLOT.default.split("+")
    filters = min(order.index(name) for name in ("top_k", "top_p", "min_p"))
    assert order.index("penalties") < order.index("temperature") < filters
