"""Verifiers: whatever is guessed, tokens follow the model's law, and the test of that knows a wrong one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.params import SamplingParams
from headrace.sample import draw
from headrace.sample.sampler import Sampler
from headrace.slots import slots
from headrace.speculate.tree import Draft, depth_first
from headrace.speculate.verifiers import SLOT, Verifier
from headrace.types import Guesses, Request, Sequence, Span, Uniform
from tests.speculate.laws import LEAST, law, p_value
from tests.speculate.test_draft_model import second
from tests.whole import models
from tests.whole.drive import collect

VOCAB = 8
TIMES = 2000
LAWS = {
    "alike": (law(VOCAB, 1), (law(VOCAB, 1) + law(VOCAB, 2)) / 2),
    "unlike": (law(VOCAB, 3, sharp=2.5), law(VOCAB, 4, sharp=2.5)),
    "same": (law(VOCAB, 5), law(VOCAB, 5)),
    "what one never says": (law(VOCAB, 6, forbidden=3), law(VOCAB, 7, forbidden=3)),
    "certain": (law(VOCAB, 8, forbidden=7), law(VOCAB, 9)),
}
"""What the model says, and what the drafter says."""
Guessing = Callable[[Tensor, int, int], tuple[int, ...]]


def drawn(q_V: Tensor, seed: int, count: int = 1) -> tuple[int, ...]:
    """One after the other, without putting back."""
    found: list[int] = []
    while len(found) < count and float(q_V.sum()) > 0:
        found.append(draw.choose(q_V.log(), draw.uniform(seed, 0, f"guess{len(found)}")))
        q_V = draw.without(q_V, found[-1])
    return tuple(found)


def likeliest(q_V: Tensor, seed: int, count: int = 1) -> tuple[int, ...]:
    return tuple(q_V.topk(count).indices.tolist())


def counts(
    verifier: Verifier, p_V: Tensor, q_V: Tensor, guess: Guessing, count: int = 1
) -> tuple[Tensor, int]:
    """How often each token came, and how often a guess was right."""
    found_V, right = torch.zeros(VOCAB), 0
    for seed in range(TIMES):
        guesses = Guesses(guess(q_V, seed, count), q_V)
        token = verifier.choose(p_V.log(), guesses, partial(draw.uniform, seed, 0))
        found_V[token] += 1
        right += token in guesses.tokens
    return found_V, right


def rightness(p_V: Tensor, q_V: Tensor, count: int) -> float:
    """How often a guess of so many, offered in turn, is accepted: over all of their orders."""
    if count == 0 or not float(q_V.sum()) > 0:
        return 0.0
    share = float(torch.minimum(p_V, q_V).sum())
    rest_V = draw.residual(p_V, q_V)
    for guess in range(VOCAB):
        refused = float((q_V - p_V)[guess].clamp_min(0))
        if refused > 0:
            share += refused * rightness(rest_V, draw.without(q_V, guess), count - 1)
    return share


@pytest.mark.parametrize("laws", LAWS)
@pytest.mark.parametrize("name,count", [("sample_match", 1), ("rejection", 1), ("rsd", 1), ("rsd", 3)])
def test_tokens_follow_the_models_law(name: str, count: int, laws: str) -> None:
    verifier: Verifier = SLOT.make(name)
    p_V, q_V = LAWS[laws]
    found_V, right = counts(verifier, p_V, q_V, drawn, count)
    assert p_value(found_V, p_V) > LEAST
    share = rightness(p_V, q_V, count) if verifier.laws else float((p_V * q_V).sum())
    assert right / TIMES == pytest.approx(share, abs=4 * max(0.0, share * (1 - share) / TIMES) ** 0.5 + 1e-9)


def test_several_are_more_often_right() -> None:
    p_V, q_V = LAWS["unlike"]
    shares = [rightness(p_V, q_V, count) for count in (1, 2, 3, 4)]
    assert all(more > less + 0.02 for less, more in pairwise(shares))


def test_the_test_knows_a_biased_one() -> None:
    """Guesses that were not drawn, weighed as if they had been."""
    p_V, q_V = LAWS["alike"]
    for name, count in (("rejection", 1), ("rsd", 1), ("rsd", 2)):
        found_V, _ = counts(SLOT.make(name), p_V, q_V, likeliest, count)
        assert p_value(found_V, p_V) < 1e-9
    found_V, _ = counts(SLOT.make("sample_match"), p_V, q_V, likeliest)
    assert p_value(found_V, p_V) > LEAST, "sample matching does not ask where a guess is from"


@pytest.mark.parametrize("name", SLOT.index)
def test_guesses_that_nobody_drew(name: str) -> None:
    """A grammar's: the plain engine's token comes."""
    p_V, _ = LAWS["alike"]
    for seed in range(50):
        uniform = partial(draw.uniform, seed, 0)
        want = draw.choose(p_V.log(), uniform("token"))
        for tokens in ((), (2,), (want,)):
            assert SLOT.make(name).choose(p_V.log(), Guesses(tokens), uniform) == want


# ---- along a draft ----

FEW, LENGTH = 4, 3
TABLE = torch.stack([law(FEW, 20 + i) for i in range(FEW * FEW)]).view(FEW, FEW, FEW)
"""What follows two tokens, as the model has it."""
GUESSED = torch.stack([(law(FEW, 20 + i) + law(FEW, 60 + i)) / 2 for i in range(FEW * FEW)]).view(
    FEW, FEW, FEW
)
"""As the drafter has it."""


def walk(sampler: Sampler, seed: int, wide: int) -> tuple[int, ...]:
    """Three tokens after (0, 1). Each step guesses a tree of as many levels as are left, less one: `wide` at first,
    one after each."""
    seq = Sequence(1, Request(id="r", prompt=(0, 1), params=SamplingParams()), 0, seed, [0, 1], 2)
    while seq.num_generated < LENGTH:
        texts, parents, laws = [tuple(seq.tokens)], list[int](), list[Tensor]()
        for parent, text in enumerate(texts):  # which grows
            if len(text) < 2 + LENGTH - 1:
                law_V = GUESSED[text[-2], text[-1]]
                for token in drawn(law_V, 10 * seed + len(text), wide if parent == 0 else 1):
                    texts.append((*text, token))
                    parents.append(parent - 1)
                    laws.append(law_V)
        draft = depth_first(Draft(tuple(text[-1] for text in texts[1:]), tuple(parents), tuple(laws)))
        texts = [texts[0], *(text for _, text in sorted(zip(order(parents), texts[1:], strict=True)))]
        span = Span(1, len(seq) - 1, len(seq), draft.tokens, draft.parents, draft.laws)
        rows = torch.stack([TABLE[text[-2], text[-1]].log() for text in texts])
        sampler.start(seq)
        seq.tokens += sampler([span], {1: seq}, rows, {}).accepted[0].tokens
    return tuple(seq.tokens[2:])


def order(parents: list[int]) -> list[int]:
    """Where each guess is in depth-first order."""
    numbered = depth_first(Draft(tuple(range(len(parents))), tuple(parents)))
    return [numbered.tokens.index(guess) for guess in range(len(parents))]


@pytest.mark.parametrize(
    "name,wide", [("sample_match", 1), ("sample_match", 3), ("rejection", 1), ("rsd", 1), ("rsd", 3)]
)
def test_whole_texts_follow_the_models_law(name: str, wide: int) -> None:
    sampler = Sampler((), (), choose=SLOT.make(name).choose)
    found = torch.zeros(FEW, FEW, FEW)
    for seed in range(1000):
        found[walk(sampler, seed, wide)] += 1
    expected = TABLE[0, 1][:, None, None] * TABLE[1][:, :, None] * TABLE
    assert p_value(found.flatten(), expected.flatten()) > LEAST


# ---- in the engine ----


def engine(verifier: str, drafter: str = "draft_model:model=mixed", **options: object) -> Engine:
    stack = {"drafter": drafter, "verifier": verifier, "draft-budget": "fixed:tokens=6"}
    config = EngineConfig(stack=stack, page_tokens=4, threads=1, **options)
    return Engine(config, decoder=models.decoder("full"))


@pytest.fixture(autouse=True)
def second_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_open", lambda self, name: second(name))


@pytest.mark.parametrize(
    "verifier,drafter",
    [
        ("rsd", "draft_tree:model=full,branching=2.2"),
        pytest.param("rejection", "draft_model:model=full", marks=pytest.mark.slow),
    ],
    ids=["tree", "chain"],
)
def test_an_engines_texts_follow_the_models_law(
    verifier: str, drafter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second model is the first one, but is not told of the biases."""
    monkeypatch.setattr("headrace.speculate.draft.MOST", 1000)
    common = SamplingParams(temperature=1.5, top_k=3, ignore_eos=True)
    usual = {token for text in exact_laws((5, 9, 11), common, 3) for token in text}
    biased = replace(common, logit_bias={token: -0.3 * (token % 4) for token in usual}, presence_penalty=0.3)
    laws = exact_laws((5, 9, 11), biased, 3)
    made, found = engine(verifier, drafter, kv_bytes=8 << 20), Counter[tuple[int, ...]]()
    for seed in range(2):
        params = replace(biased, n=128, max_tokens=3, seed=seed)
        made.add(Request(id="r", prompt=(5, 9, 11), params=params))
        found.update(map(tuple, collect(made).values()))
    counters = made.counters
    assert 0.1 * counters.drafted_tokens < counters.accepted_tokens < 0.9 * counters.drafted_tokens
    assert set(found) <= set(laws)
    total = [found[text] for text in laws]
    assert p_value(torch.tensor(total), torch.tensor(list(laws.values()))) > LEAST


def exact_laws(prompt: tuple[int, ...], params: SamplingParams, length: int) -> dict[tuple[int, ...], float]:
    """The probability of each text of so many tokens, from the rows of the plain engine."""
    plain = Engine(EngineConfig(threads=1), decoder=models.decoder("full"))
    laws, rows = {(): 1.0}, list[Tensor]()
    plain.sampler.tap = lambda seq, logits_V: rows.append(logits_V.softmax(-1))
    for _ in range(length):
        longer = {}
        for text, share in laws.items():
            rows.clear()
            plain.add(Request(id="r", prompt=prompt, params=replace(params, max_tokens=len(text) + 1)))
            forced = Forced(text)
            plain.sampler._verify = forced
            collect(plain)
            for token in rows[-1].nonzero()[:, 0].tolist():
                longer[(*text, token)] = share * float(rows[-1][token])
        laws = longer
    return laws


class Forced:
    """Chooses the tokens of a text, then anything."""

    def __init__(self, text: tuple[int, ...]) -> None:
        self._left = [*text, -1]

    def __call__(self, logits_V: Tensor, guesses: Guesses, uniform: Uniform) -> int:
        token = self._left.pop(0)
        return int(logits_V.argmax()) if token < 0 else token


@pytest.mark.parametrize("name", SLOT.index)
def test_the_likeliest_token_needs_no_law(name: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, repetition_penalty=1.2)
    drafter = "draft_tree:model=mixed" if name == "rsd" else "draft_model:model=mixed"
    made, plain = engine(name, drafter), Engine(EngineConfig(threads=1), decoder=models.decoder("full"))
    for each in (made, plain):
        each.add(Request(id="r", prompt=(5, 9, 11), params=params))
    assert collect(made) == collect(plain) and made.counters.drafted_tokens > 0


@pytest.mark.parametrize("verifier", ["rejection", "rsd"])
@pytest.mark.parametrize("drafter", ["copyspec", "recycle", ""])
def test_a_drafter_that_draws_nothing_is_refused(drafter: str, verifier: str) -> None:
    stack = {"verifier": verifier} | ({"drafter": drafter} if drafter else {})
    with pytest.raises(ConfigError, match=r"draws nothing.*sample_match"):
        Engine(EngineConfig(stack=stack, threads=1), decoder=models.decoder("full"))


def test_several_guesses_of_a_place_need_one_who_weighs_several() -> None:
    stack = {"verifier": "rejection", "drafter": "draft_tree:model=full"}
    with pytest.raises(ConfigError, match=r"one guess per place.*rsd"):
        Engine(EngineConfig(stack=stack, threads=1), decoder=models.decoder("full"))


def test_every_verifier_says_what_it_keeps() -> None:
    for name in SLOT.index:
        verifier = slots()["verifier"].make(name)
        assert verifier.card.exact == ("law" if verifier.laws else "bits")
        assert any(fact == "draft_law" for fact, _ in verifier.card.needs) == verifier.laws
