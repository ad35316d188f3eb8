"""Vocabularies for every test of text."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.text.tokenizer import Tokenizer
from tests.text.folders import byte_level, sentencepiece


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(tmp_path_factory.mktemp("byte_level"))


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentencepiece(tmp_path_factory.mktemp("sentencepiece"))


@pytest.fixture(scope="session", params=["byte_level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(request.getfixturevalue(f"{request.param}_folder"))


@pytest.fixture(scope="session")
def plain(byte_level_folder: Path) -> Tokenizer:
    """The byte-level one, where any one will do."""
    return Tokenizer(byte_level_folder)
