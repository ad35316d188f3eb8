"""/v1/chat/completions, asked by OpenAI's own client too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from headrace import LLM
from tests.server.running import Server

MESSAGES = [{"role": "user", "content": "Copy this: abc def"}]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_same_answer_as_the_python_api(client: openai.OpenAI, llm: LLM) -> None:
    [want] = llm.chat(MESSAGES, llm.sampling(temperature=0, max_tokens=12))
    got = client.chat.completions.create(model="tiny-draft", messages=MESSAGES, temperature=0, max_tokens=12)
    assert got.choices[0].message.content == want.text and got.choices[0].message.role == "assistant"
    assert got.choices[0].finish_reason == want.samples[0].finish_reason
    assert got.usage is not None and got.usage.prompt_tokens == len(want.prompt_token_ids)
    assert got.usage.completion_tokens == len(want.samples[0].token_ids)


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny-draft", "messages": MESSAGES, "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    events = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    first, *pieces, last = events
    assert first.choices[0].delta.role == "assistant" and first.choices[0].delta.content == ""
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.choices == [] and last.usage == whole.usage


def test_samples_interleave_by_index(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny-draft", "messages": MESSAGES, "seed": 3, "max_tokens": 6, "n": 3}
    whole = client.chat.completions.create(**asked)
    texts = ["", "", ""]
    for event in client.chat.completions.create(**asked, stream=True):
        texts[event.choices[0].index] += event.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_logprobs(client: openai.OpenAI, llm: LLM) -> None:
    params = llm.sampling(temperature=0, max_tokens=4, logprobs=3)
    [want] = llm.chat(MESSAGES, params)
    got = client.chat.completions.create(
        model="tiny-draft", messages=MESSAGES, temperature=0, max_tokens=4, logprobs=True, top_logprobs=3
    )
    assert got.choices[0].logprobs is not None and got.choices[0].logprobs.content is not None
    for entry, item in zip(got.choices[0].logprobs.content, want.samples[0].logprobs, strict=True):
        assert entry.logprob == pytest.approx(item.logprob, abs=1e-4)
        assert bytes(entry.bytes or []) == llm.tokenizer.bytes_of(item.token)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(
            [v for _, v in item.top], abs=1e-4
        )


def test_the_answer_may_fill_the_context(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(
        model="tiny-draft", messages=MESSAGES, temperature=0, extra_body={"ignore_eos": True}
    )
    assert got.choices[0].finish_reason == "length"
    assert got.usage is not None and got.usage.total_tokens == 2048


def test_an_asynchronous_client(server: Server) -> None:
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:

            async def one() -> str:
                stream = await client.chat.completions.create(
                    model="tiny-draft", messages=MESSAGES, temperature=0, max_tokens=8, stream=True
                )
                return "".join([event.choices[0].delta.content or "" async for event in stream])

            return await asyncio.gather(*[one() for _ in range(8)])

    assert len(set(asyncio.run(ask_all()))) == 1


def test_models(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert model.id == "tiny-draft" and model.to_dict()["max_model_len"] == 2048
    assert client.models.retrieve("tiny-draft").id == "tiny-draft"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt-9")
    assert error.value.code == "model_not_found"


def test_a_template_that_refuses_is_the_clients_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="tiny-draft", messages=[{"role": "emperor", "content": "x"}])  # type: ignore[arg-type]
    assert "no role called 'emperor'" in str(error.value)
