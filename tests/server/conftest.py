from __future__ import annotations

from collections.abc import Iterator

import pytest

from headrace import LLM
from tests.server.running import Server, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with serving("--model", "tiny-draft", "--threads", "1") as running:
        yield running


@pytest.fixture(scope="session")
def llm() -> Iterator[LLM]:
    """The same model in this process: what the server's answers must equal."""
    with LLM("tiny-draft", threads=1) as llm:
        yield llm
