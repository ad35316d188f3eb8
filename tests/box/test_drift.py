"""Drift from the uncompressed model: nothing for a stack that is exact, and the definition's own numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from headrace.box import drift
from headrace.llm import LLM
from tests.text.folders import random_model

TEXT = "def area(width, height):\n    return width * height  # café 東京\n\n" * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(random_model(tmp_path_factory.mktemp("model")))


def scores(folder: str, **stack: str) -> dict[str, float]:
    slots = {name.replace("_", "-"): spec for name, spec in stack.items()}
    with LLM(folder, stack=slots) as llm, LLM(folder) as exact:
        found = {one.metric: one for one in drift.drift(llm, exact, 3, 0, TEXT)}
    assert list(found) == ["KL", "same", "divergence"]
    assert all(one.low <= one.value <= one.high and one.count == 3 for one in found.values())
    return {metric: one.value for metric, one in found.items()}


def test_an_exact_stack_does_not_drift(folder: str) -> None:
    assert scores(folder, policy="sarathi:tokens=5") == {"KL": 0.0, "same": 1.0, "divergence": drift.LENGTH}


def test_fewer_bits_drift_further(folder: str) -> None:
    fine, coarse = scores(folder, weights="int4:group=32"), scores(folder, weights="int2:group=32")
    assert 0 < fine["KL"] < coarse["KL"] and fine["same"] > coarse["same"]
    assert coarse["divergence"] < fine["divergence"] <= drift.LENGTH


def test_the_numbers_are_those_of_the_definition() -> None:
    own = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.1, 0.2, 0.3, 0.4]]).log()
    other = torch.tensor([[0.25, 0.5, 0.25, 0.0], [0.1, 0.2, 0.3, 0.4]]).log()
    kl, same = drift.compare(own, other)
    assert math.isclose(kl, 0.5 * math.log(2) - 0.25 * math.log(2), rel_tol=1e-6) and same == 1.0


def test_pieces_cover_the_text_once(folder: str) -> None:
    with LLM(folder) as llm:
        pieces = drift.cut(llm, TEXT, 10**6)
        first = 0 if llm.tokenizer.bos is None else 1
        assert len(pieces) > 2 and len({len(piece) for piece in pieces[:-1]}) == 1
        assert llm.tokenizer.decode([token for piece in pieces for token in piece[first:]]) == TEXT


def test_log_probabilities_are_of_every_position(folder: str, tmp_path: Path) -> None:
    with LLM(folder, stack={"policy": "sarathi:tokens=5"}) as llm:
        piece = drift.cut(llm, TEXT, 1)[0]
        found_TV = drift.log_probs(llm, piece)
        assert found_TV.shape == (len(piece) - 1, llm.engine.architecture.vocab)
        assert torch.allclose(found_TV.exp().sum(-1), torch.ones(len(piece) - 1), atol=1e-5)
        assert llm.engine.runner.tap is None
