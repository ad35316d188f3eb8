from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from random import Random

import pytest

from headrace.box import evaluate as box
from headrace.box.tasks import TASKS, examples
from headrace.errors import ConfigError
from headrace.llm import LLM
from headrace.params import SamplingParams
from tests.text.folders import random_model

TEXT = "def area(width, height):\n    return width * height  # café 東京\n\n" * 12


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory):
    with LLM(str(random_model(tmp_path_factory.mktemp("model")))) as llm:
        yield llm


def test_pass_at_k_is_unbiased() -> None:
    for right in range(6):
        outcomes = [True] * right + [False] * (5 - right)
        for k in (1, 3, 5):
            draws = list(itertools.combinations(outcomes, k))
            assert math.isclose(box.pass_estimate(5, right, k), sum(map(any, draws)) / len(draws))


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng, covered = Random(1), 0
    for seed in range(60):
        low, high = box.bootstrap([(float(rng.random() < 0.4), 1.0) for _ in range(80)], seed)
        covered += low <= 0.4 <= high
    assert 50 <= covered <= 60
    assert box.bootstrap([(2.0, 1.0)] * 5, 0) == (2.0, 2.0)


def test_chunks_score_every_byte_once(llm: LLM) -> None:
    chunks = box.make_chunks(llm, TEXT)
    assert len(chunks) > 2 and all(len(chunk.prompt) == llm.engine.context - 1 for chunk in chunks)
    assert all(chunk.prompt[0] == llm.tokenizer.bos for chunk in chunks)
    scored = [token for chunk in chunks for token in chunk.prompt[chunk.known :]]
    assert llm.tokenizer.decode(scored) == TEXT


def test_bits_per_byte_is_the_sum_of_what_the_engine_reports(llm: LLM) -> None:
    score = box.bits_per_byte(llm, 100, 0, TEXT)
    bits = 0.0
    for chunk in box.make_chunks(llm, TEXT):
        [output] = llm.generate(
            [chunk.prompt], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        )
        logprobs = {i + 1: item.logprob for i, item in enumerate(output.prompt_logprobs)}
        bits -= sum(logprobs[i] for i in range(chunk.known, len(chunk.prompt))) / math.log(2)
    assert math.isclose(score.value, bits / len(TEXT.encode()))


def test_a_model_agrees_with_itself_only(llm: LLM, tmp_path: Path) -> None:
    assert box.agreement(llm, llm, 2, 0, TEXT).value == 1.0
    with LLM(str(random_model(tmp_path, seed=5))) as other:
        assert box.agreement(llm, other, 2, 0, TEXT).value < 0.5


def test_right_answers_score(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [example.answer for example in examples("sort", 4, 0)]
    generate = llm.generate

    def first_two_right(prompts, params):
        outputs = generate(prompts, params)
        right = iter([*answers[:2], "0 1", ""])
        return [
            dataclasses.replace(output, samples=(dataclasses.replace(output.samples[0], text=next(right)),))
            for output in outputs
        ]

    monkeypatch.setattr(llm, "generate", first_two_right)
    [score] = box.accuracy(llm, TASKS["sort"], 4, 0)
    assert (score.task, score.metric, score.value, score.count) == ("sort", "accuracy", 0.5, 4)
    assert score.low < 0.5 < score.high and score.size == "6 numbers"


def test_what_is_refused(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="'paskey'; did you mean 'passkey'"):
        box.evaluate(llm, ["paskey"])
    with pytest.raises(ConfigError, match="name the second with --draft"):
        box.evaluate(llm, ["agreement"])


def test_cards_are_read_leniently(tmp_path: Path) -> None:
    assert box.read_card(tmp_path) == {}
    (tmp_path / "card.json").write_text('{"figures": {"ppl bits/byte": 1.2, "note": "x"}}')
    assert box.read_card(tmp_path) == {"ppl bits/byte": 1.2}
