"""Embeddings and scores of the model in the box: those of transformers, pooled and added up by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import transformers

from headrace import box
from headrace.errors import ConfigError
from headrace.llm import LLM
from headrace.types import PoolingKind

TEXTS = ["def read_lines(path):\n", "a", "The quick brown fox jumps over the lazy dog. " * 9]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("tiny-draft", threads=1, dtype="float64") as llm:
        yield llm


@pytest.fixture(scope="module")
def oracle() -> transformers.PreTrainedModel:
    folder = str(box.path("tiny-draft"))
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


@torch.inference_mode()
def hidden(oracle: transformers.PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return oracle.model(torch.tensor([ids])).last_hidden_state[0]


@pytest.mark.parametrize("kind", ["mean", "last"])
def test_embeddings(llm: LLM, oracle: transformers.PreTrainedModel, kind: PoolingKind) -> None:
    plain = llm.embed(TEXTS, pooling=kind, normalize=False)
    scaled = llm.embed(TEXTS, pooling=kind)
    for text, found, unit in zip(TEXTS, plain, scaled, strict=True):
        hidden_TD = hidden(oracle, llm.tokenizer.encode(text))
        want_D = hidden_TD.mean(0) if kind == "mean" else hidden_TD[-1]
        assert list(found) == pytest.approx(want_D.tolist(), rel=1e-5, abs=1e-6)
        assert list(unit) == pytest.approx((want_D / want_D.norm()).tolist(), rel=1e-5, abs=1e-6)


@torch.inference_mode()
def test_scores(llm: LLM, oracle: transformers.PreTrainedModel) -> None:
    prompt, choices = "def add(x, y):\n    return", [" x + y", " y", "\n\n\n", " x"]
    ids = llm.tokenizer.encode(prompt)
    for choice, score in zip(choices, llm.score(prompt, choices), strict=True):
        whole = llm.tokenizer.encode(prompt + choice)
        assert tuple(whole[len(ids) :]) == score.token_ids
        law = torch.log_softmax(oracle(torch.tensor([whole])).logits[0], -1)
        want = [float(law[i - 1, whole[i]]) for i in range(len(ids), len(whole))]
        assert list(score.logprobs) == pytest.approx(want, abs=1e-5)  # transformers norms in float32
        assert score.logprob == pytest.approx(sum(want), abs=3e-5)
        assert score.mean == pytest.approx(sum(want) / len(want), abs=1e-5)


def test_a_choice_that_changes_the_prompts_tokens_is_encoded_alone(llm: LLM) -> None:
    prompt, choice = "retu", "rn"
    ids, alone = llm.tokenizer.encode(prompt), llm.tokenizer.encode(choice, add_special=False)
    assert llm.tokenizer.encode(prompt + choice)[: len(ids)] != ids
    [score] = llm.score(prompt, [choice])
    assert list(score.token_ids) == alone
    assert llm.score(ids, [alone]) == [score]


def test_many_choices_take_the_prompt_from_the_cache(llm: LLM) -> None:
    prompt = TEXTS[2]
    length = len(llm.tokenizer.encode(prompt))
    before = llm.engine.counters.computed_tokens
    llm.score(prompt, [" a", " b", " c", " d", " e"])
    assert llm.engine.counters.computed_tokens - before < 2 * length
    assert llm.score(prompt, []) == []


def test_refused(llm: LLM) -> None:
    with pytest.raises(ConfigError, match=r"choices\[1\] is empty"):
        llm.score("a", ["b", ""])
    with pytest.raises(ConfigError, match="2049 tokens, and the context holds 2048"):
        llm.embed([[5] * 2049])
    with pytest.raises(ConfigError, match="dimensions=129"):
        llm.embed(["a"], dimensions=129)
    assert len(llm.embed(["a"], dimensions=7)[0]) == 7
