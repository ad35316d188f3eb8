"""Sampler: each row is chosen as if it were alone, and a draft changes nothing but the number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headrace.errors import ConfigError
from headrace.params import SamplingParams
from headrace.sample.processors import SLOT
from headrace.sample.sampler import Sampler, raw_logprobs
from headrace.sample.stateless import Stateless
from headrace.types import Accepted, Logprob, Request, Span
from headrace.types import Sequence as Seq

VOCAB = 16
GREEDY = SamplingParams(temperature=0)
EVERYTHING = SamplingParams(
    temperature=0.9,
    top_k=9,
    top_p=0.95,
    min_p=0.01,
    repetition_penalty=1.3,
    frequency_penalty=0.5,
    min_tokens=3,
    logit_bias={4: 1.5},
    logprobs=3,
)


def seq(
    id: int = 1, params: SamplingParams = GREEDY, tokens: Sequence[int] = (1, 2, 3), prompt: int = 2
) -> Seq:
    request = Request(id=f"r{id}", prompt=tuple(tokens[:prompt]), params=params)
    return Seq(id=id, request=request, index=0, seed=100 + id, tokens=list(tokens), prompt_len=prompt)


def sampler(
    *sequences: Seq, processors: Sequence[object] | None = None, eos: Sequence[int] = (0,)
) -> Sampler:
    made = Sampler(SLOT.parse(SLOT.default) if processors is None else processors, eos)
    for sequence in sequences:
        made.start(sequence)
    return made


def decode(sequence: Seq, draft: Sequence[int] = ()) -> Span:
    return Span(sequence.id, len(sequence) - 1, len(sequence), tuple(draft))


def logits(rows: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (
        torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
        * 2
    )


def sample(
    made: Sampler, spans: Sequence[Span], sequences: Sequence[Seq], rows: Tensor
) -> tuple[Accepted, ...]:
    return made(spans, {s.id: s for s in sequences}, rows, {}).accepted


# ---- one row ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "params", [GREEDY, SamplingParams(temperature=0, logit_bias={15: -1.0})], ids=["bare", "processed"]
)
def test_greedy_takes_the_first_of_equals(params: SamplingParams, dtype: torch.dtype) -> None:
    one = seq(params=params)
    rows = torch.zeros(1, VOCAB, dtype=dtype)
    rows[0, [5, 9, 12]] = 2.0
    assert sample(sampler(one), [decode(one)], [one], rows) == (Accepted((5,)),)


def test_greedy_obeys_processors() -> None:
    one = seq(params=SamplingParams(temperature=0, logit_bias={7: 100.0}))
    assert sample(sampler(one), [decode(one)], [one], logits(1))[0].tokens == (7,)


def test_a_span_that_does_not_reach_the_end_yields_nothing() -> None:
    one, two = seq(1, tokens=range(1, 9), prompt=8), seq(2)
    scores = {1: (Logprob(3, -1.0),), 2: (Logprob(4, -2.0),)}
    rows = logits(1)
    result = sampler(one, two)([Span(1, 0, 5), decode(two)], {1: one, 2: two}, rows, scores)
    assert result.accepted[0] == Accepted(prompt_logprobs=scores[1])
    assert result.accepted[1] == Accepted((int(rows[0].argmax()),), (), scores[2])


def test_rows_that_nobody_samples_are_noticed() -> None:
    one = seq()
    with pytest.raises(AssertionError):
        sample(sampler(one), [decode(one)], [one], logits(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_row_is_chosen_as_if_it_were_alone(dtype: torch.dtype) -> None:
    params = [
        GREEDY,
        EVERYTHING,
        SamplingParams(),
        SamplingParams(temperature=1.7, presence_penalty=1.0, logprobs=0),
    ]
    sequences = [seq(i, params[i % 4]) for i in range(12)]
    rows = logits(12, dtype=dtype)
    together = sample(sampler(*sequences), [decode(s) for s in sequences], sequences, rows)
    turned = sample(sampler(*sequences), [decode(s) for s in sequences[::-1]], sequences, rows.flip(0))
    alone = [sample(sampler(s), [decode(s)], [s], rows[i : i + 1])[0] for i, s in enumerate(sequences)]
    assert list(together) == list(turned[::-1]) == alone
    assert len({accepted.tokens for accepted in alone}) > 3


def test_the_draw_follows_seed_and_position() -> None:
    flat = torch.zeros(1, VOCAB)

    def drawn(seed: int, length: int) -> int:
        one = seq(params=SamplingParams(), tokens=range(1, length + 1))
        one.seed = seed
        return sample(sampler(one), [decode(one)], [one], flat)[0].tokens[0]

    assert drawn(5, 4) == drawn(5, 4)
    assert len({drawn(5, length) for length in range(3, 15)}) > 4
    assert len({drawn(seed, 4) for seed in range(12)}) > 4


# ---- drafts ----


def step_by_step(params: SamplingParams, rows: Tensor) -> list[Accepted]:
    """What comes of these rows without any draft."""
    one, found = seq(params=params), []
    made = sampler(one)
    for row in rows:
        found.append(sample(made, [decode(one)], [one], row[None])[0])
        one.tokens += found[-1].tokens
    return found


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    params=st.sampled_from([GREEDY, EVERYTHING, SamplingParams(temperature=1.3, frequency_penalty=1.5)]),
    seed=st.integers(0, 20),
    wrong_at=st.integers(0, 6),
    length=st.integers(0, 6),
)
def test_a_draft_is_followed_as_far_as_it_is_right(
    params: SamplingParams, seed: int, wrong_at: int, length: int
) -> None:
    """The tokens, the log-probabilities and the state left behind are those of going step by step."""
    rows = logits(length + 3, seed)
    expected = step_by_step(params, rows)
    truth = [accepted.tokens[0] for accepted in expected]
    draft = [(token + 1) % VOCAB if i == wrong_at else token for i, token in enumerate(truth[:length])]
    one = seq(params=params)
    made = sampler(one)
    (got,) = sample(made, [decode(one, draft)], [one], rows[: length + 1])
    count = min(wrong_at, length) + 1
    assert list(got.tokens) == truth[:count], "all that were right, and the one that comes next"
    assert list(got.logprobs) == [logprob for accepted in expected[:count] for logprob in accepted.logprobs]
    one.tokens += got.tokens
    (then,) = sample(made, [decode(one)], [one], rows[count : count + 1])
    assert then == expected[count]


def test_drafts_of_several_sequences_do_not_mix() -> None:
    rows = logits(6, seed=3)
    best = rows.argmax(-1).tolist()
    one, two, three = seq(1), seq(2), seq(3)
    spans = [decode(one, [best[0], best[1] ^ 1]), decode(two), decode(three, [best[4]])]
    got = sample(sampler(one, two, three), spans, [one, two, three], rows)
    assert [accepted.tokens for accepted in got] == [tuple(best[:2]), (best[3],), tuple(best[4:6])]


# ---- log-probabilities ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_raw_logprobs_are_log_softmax(dtype: torch.dtype) -> None:
    rows = logits(3, dtype=dtype)
    law = torch.log_softmax(rows.double(), -1)
    for count in (0, 1, 5, VOCAB, 99):
        found = raw_logprobs(rows, [4, 0, 15], count)
        for row, (logprob, token) in enumerate(zip(found, [4, 0, 15], strict=True)):
            assert logprob.token == token and logprob.logprob == pytest.approx(
                float(law[row, token]), abs=1e-5
            )
            best = sorted(law[row].tolist(), reverse=True)[:count]
            assert [value for _, value in logprob.top] == pytest.approx(best, abs=1e-5)
            assert all(float(law[row, i]) == pytest.approx(value, abs=1e-5) for i, value in logprob.top)


@dataclass(frozen=True)
class Overwriter:
    """A processor that makes use of its right to overwrite what it is given."""

    def init(self, *args: object) -> _Overwriting:
        return _Overwriting()


class _Overwriting(Stateless):
    def apply(self, logits_V: Tensor) -> Tensor:
        logits_V.mul_(0.1)
        logits_V[3] = 50.0
        return logits_V


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logprobs_are_those_of_the_model_whatever_processors_do(
    temperature: float, dtype: torch.dtype
) -> None:
    rows = logits(2, dtype=dtype)
    raw = rows.clone()
    asked = SamplingParams(temperature=temperature, logprobs=2, logit_bias={1: 30.0}, top_k=3)
    one = seq(params=asked)
    (got,) = sample(
        sampler(one, processors=[Overwriter(), *SLOT.parse(SLOT.default)]), [decode(one, [3])], [one], rows
    )
    assert got.tokens == (3, 3)
    assert list(got.logprobs) == raw_logprobs(raw, [3, 3], 2)
    assert torch.equal(rows, raw), "a row was overwritten"


# ---- states ----


@dataclass
class Recorder:
    """A processor that notes what it is told; its states carry a name."""

    told: list[tuple[object, ...]]

    def init(
        self, params: SamplingParams, tokens: Sequence[int], prompt_len: int, eos: Sequence[int]
    ) -> None:
        self.told.append((tuple(tokens), prompt_len, tuple(eos)))


def test_processors_learn_the_tokens_and_the_ends_that_count() -> None:
    recorder = Recorder([])
    made = sampler(processors=[recorder], eos=(0, 7))
    made.start(seq(1, GREEDY, (4, 5, 6), 2))
    made.start(seq(2, SamplingParams(ignore_eos=True), (4, 5), 2))
    assert recorder.told == [((4, 5, 6), 2, (0, 7)), ((4, 5), 2, ())]


def test_states_live_as_long_as_their_sequence() -> None:
    params = SamplingParams(temperature=0, frequency_penalty=2.0)
    parent, child = seq(1, params), seq(2, params)
    made = sampler(parent)
    made.fork(1, 2)
    assert len(made) == 2
    rows = torch.zeros(1, VOCAB)
    rows[0, 6], rows[0, 7] = 3.0, 2.0
    first = [sample(made, [decode(s)], [s], rows)[0].tokens for s in (parent, child, parent)]
    assert first == [(6,), (6,), (7,)], "the parent's tokens count for the parent only"
    made.forget(1)
    made.forget(2)
    assert len(made) == 0


def test_starting_again_forgets_what_was_not_kept() -> None:
    """After a step that failed, a sequence has the tokens it had, and so has its state."""
    params = SamplingParams(temperature=0, frequency_penalty=2.0)
    one = seq(1, params)
    made, rows = sampler(one), torch.zeros(1, VOCAB)
    rows[0, 6] = 1.0
    assert sample(made, [decode(one)], [one], rows)[0].tokens == (6,)
    assert sample(made, [decode(one)], [one], rows)[0].tokens == (0,)
    made.start(one)
    assert sample(made, [decode(one)], [one], rows)[0].tokens == (6,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_ends_its_sequence_alone(bad: float) -> None:
    sequences = [seq(id, params) for id, params in enumerate([GREEDY, EVERYTHING, GREEDY], 1)]
    spans = [decode(sequence) for sequence in sequences]
    table = {sequence.id: sequence for sequence in sequences}
    want = sampler(*sequences)(spans, table, logits(3), {}).accepted
    damaged = logits(3)
    damaged[1, 5] = bad
    found = sampler(*sequences)(spans, table, damaged, {}).accepted
    assert found[0] == want[0] and found[2] == want[2]
    assert found[1].tokens == () and "non_finite_logits" in (found[1].error or "")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_sequence_that_forbids_itself_everything_ends_alone(temperature: float) -> None:
    stuck = SamplingParams(
        temperature=temperature, top_k=3, top_p=0.9, min_p=0.1, allowed_token_ids=(4,), bad_words_ids=((4,),)
    )
    one, other = seq(1, stuck), seq(2)
    logits_RV = torch.arange(2 * VOCAB, dtype=torch.float32).view(2, VOCAB)
    made = sampler(one, other)([Span(1, 2, 3), Span(2, 2, 3)], {1: one, 2: other}, logits_RV, {})
    assert "forbids every token" in made.accepted[0].error and made.accepted[0].tokens == ()
    assert made.accepted[1].tokens == (VOCAB - 1,) and not made.accepted[1].error


def test_what_the_stack_leaves_out_is_refused() -> None:
    made = sampler(processors=SLOT.parse("temperature"))
    for params in (SamplingParams(temperature=0.5), SamplingParams(temperature=0)):
        made.check(params)
    for params, name in (
        (SamplingParams(top_k=3), "top_k"),
        (SamplingParams(logit_bias={1: 2.0}), "logit_bias"),
        (SamplingParams(presence_penalty=1), "penalties"),
    ):
        with pytest.raises(ConfigError, match=f"asks for {name}, which the stack leaves out"):
            made.check(params)
