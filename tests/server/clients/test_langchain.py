"""langchain-openai: chats and completions, in each of its ways to ask."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import pydantic
import pytest

from headrace import LLM
from tests.server.clients.clients import client
from tests.server.running import Server

PROMPTS = ["def read_lines(path):\n", "import os\n", "class Queue:\n"]
MESSAGES = [("system", "Answer shortly."), ("human", "Copy this: abc def")]


class Row(pydantic.BaseModel):
    """A row."""

    name: Literal["anna", "bert"]
    ready: bool


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is told to LangChain's own service."""
    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"):
        monkeypatch.setenv(name, "false")


@pytest.fixture
def chat(server: Server) -> Any:
    made = client("langchain_openai").ChatOpenAI
    url = f"{server.url}/v1"
    return made(model="tiny-draft", base_url=url, api_key="none", temperature=0, max_tokens=12, max_retries=0)


@pytest.fixture
def complete(server: Server) -> Any:
    made = client("langchain_openai").OpenAI
    url = f"{server.url}/v1"
    return made(model="tiny-draft", base_url=url, api_key="none", temperature=0, max_tokens=8, max_retries=0)


@pytest.fixture(scope="module")
def answer(llm: LLM) -> Iterator[str]:
    """What the Python API answers to MESSAGES."""
    messages = [{"role": "system", "content": MESSAGES[0][1]}, {"role": "user", "content": MESSAGES[1][1]}]
    [output] = llm.chat(messages, llm.sampling(temperature=0, max_tokens=12))
    yield output.text


def test_invoke(chat: Any, answer: str) -> None:
    made = chat.invoke(MESSAGES)
    assert made.content == answer and made.response_metadata["finish_reason"] in ("stop", "length")
    usage = made.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_token_details"]["cache_read"] >= 0


def test_stream(chat: Any, answer: str) -> None:
    pieces = list(chat.stream(MESSAGES, stream_usage=True))
    assert "".join(piece.content for piece in pieces) == answer and len(pieces) > 3
    assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata) > 0


def test_batch(chat: Any, answer: str) -> None:
    assert [made.content for made in chat.batch([MESSAGES] * 5)] == [answer] * 5


def test_asynchronous(chat: Any, answer: str) -> None:
    async def ask() -> tuple[str, str]:
        made = await chat.ainvoke(MESSAGES)
        return made.content, "".join([piece.content async for piece in chat.astream(MESSAGES)])

    assert asyncio.run(ask()) == (answer, answer)


def test_logprobs(chat: Any) -> None:
    made = chat.bind(logprobs=True, top_logprobs=2).invoke(MESSAGES)
    content = made.response_metadata["logprobs"]["content"]
    assert "".join(item["token"] for item in content).startswith(made.content)
    assert all(item["logprob"] <= 0 and len(item["top_logprobs"]) == 2 for item in content)


@pytest.mark.parametrize("raw", [False, True])
def test_structured_output(chat: Any, raw: bool) -> None:
    longer = chat.model_copy(update={"max_tokens": 100})
    made = longer.with_structured_output(Row, method="json_schema", include_raw=raw).invoke(MESSAGES)
    assert isinstance(made["parsed"] if raw else made, Row)


def test_completions(complete: Any, llm: LLM) -> None:
    want = [output.text for output in llm.generate(PROMPTS, llm.sampling(temperature=0, max_tokens=8))]
    assert complete.invoke(PROMPTS[0]) == want[0]
    assert complete.batch(PROMPTS) == want
    made = complete.generate(PROMPTS)  # one request of several prompts
    assert [generation.text for [generation] in made.generations] == want
    assert "".join(complete.stream(PROMPTS[1])) == want[1]
    assert asyncio.run(complete.ainvoke(PROMPTS[2])) == want[2]


def test_the_best_of_several(complete: Any) -> None:
    drawn = complete.model_copy(update={"temperature": 1.0, "best_of": 3, "n": 2, "seed": 3})
    [generations] = drawn.generate(PROMPTS[:1]).generations
    assert len(generations) == 2
