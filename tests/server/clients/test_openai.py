"""OpenAI's own client: what it reads, how it gives up, and the errors that it raises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from time import sleep
from typing import Any, Literal

import httpx2
import openai
import pydantic
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from headrace import LLM
from tests.server.running import Server, metric, serving

PROMPT = "def read_lines(path):\n"
MESSAGES: Any = [{"role": "user", "content": "Copy this: abc def"}]
LONG: dict[str, Any] = {"model": "tiny-draft", "prompt": PROMPT, "max_tokens": 2000, "seed": 1, "n": 8}
OURS = {"stop_reason", "timings", "token_ids"}
"""Fields that OpenAI's answers do not have."""
KEY = "secret-key"


class Row(pydantic.BaseModel):
    name: Literal["anna", "bert"]
    ready: bool
    count: Literal[1, 2, 3]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def narrow() -> Iterator[Server]:
    """One that asks for a key, and takes two requests at most."""
    flags = ("--model", "tiny-draft", "--threads", "1", "--max-seqs", "1", "--max-waiting", "1")
    with serving(*flags, env={"HEADRACE_API_KEY": KEY}) as running:
        yield running


def extras(model: Any) -> set[str]:
    """Names that the client has no field for, at any depth."""
    if isinstance(model, list):
        return set().union(*map(extras, model))
    if not isinstance(model, pydantic.BaseModel):
        return set()
    inner = [extras(value) for _, value in model]
    return set(model.model_extra or ()).union(*inner)


def until(found: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it never came"
        sleep(0.01)


def counts(server: Server, outcome: str) -> tuple[float, float]:
    """Requests that ended so, and sequences that run."""
    with server.client(headers={"authorization": f"Bearer {KEY}"}) as client:
        text = client.get("/metrics").text
    return (
        metric(text, "headrace_requests_ended_total", outcome=outcome),
        metric(text, "headrace_requests_running"),
    )


# ---- shapes: the client's types, read strictly ----


def test_chats_fit_the_clients_types(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny-draft", "messages": MESSAGES, "max_tokens": 5, "seed": 1}
    for more in ({}, {"n": 3}, {"logprobs": True, "top_logprobs": 2}, {"stop": ["a", "e"]}):
        raw = client.chat.completions.with_raw_response.create(**asked, **more)
        made = ChatCompletion.model_validate_json(raw.text, strict=True)
        assert extras(made) <= OURS and len(made.choices) == more.get("n", 1)
        assert raw.headers["x-request-id"] and made.id.startswith("chatcmpl-")
        chunks = client.chat.completions.create(
            **asked, **more, stream=True, stream_options={"include_usage": True}
        )
        texts = [""] * len(made.choices)
        for chunk in chunks:
            read = ChatCompletionChunk.model_validate(chunk.model_dump(exclude_unset=True), strict=True)
            assert extras(read) <= OURS and chunk.id.startswith("chatcmpl-")
            for choice in read.choices:
                texts[choice.index] += choice.delta.content or ""
        assert texts == [choice.message.content for choice in made.choices]


def test_completions_fit_the_clients_types(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny-draft", "prompt": [PROMPT, "import os\n"], "max_tokens": 5}
    for more in ({}, {"n": 2}, {"logprobs": 2}, {"echo": True, "logprobs": 1}, {"best_of": 3, "n": 2}):
        raw = client.completions.with_raw_response.create(**asked, **more, seed=1)
        # The types have no null, which OpenAI's own first token of a prompt has.
        text = raw.text.replace('top_logprobs":[null,', 'top_logprobs":[{},').replace("[null,", "[0.0,")
        made = Completion.model_validate_json(text)
        assert extras(made) <= OURS and [choice.index for choice in made.choices] == list(
            range(len(made.choices))
        )
        if "best_of" not in more:
            texts = [""] * len(made.choices)
            for piece in client.completions.create(**asked, **more, seed=1, stream=True):
                assert extras(piece) <= OURS
                for choice in piece.choices:
                    texts[choice.index] += choice.text
            assert texts == [choice.text for choice in made.choices]


def test_the_list_of_models(client: openai.OpenAI) -> None:
    [model] = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("tiny-draft", "model", "headrace")
    assert 0 < model.created <= time.time()


# ---- forms ----


def test_a_pydantic_class(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny-draft",
        "messages": MESSAGES,
        "response_format": Row,
        "temperature": 0,
    }
    made = client.chat.completions.parse(**asked, max_tokens=100)
    assert isinstance(made.choices[0].message.parsed, Row) and made.choices[0].finish_reason == "stop"
    with client.chat.completions.stream(**asked, max_tokens=100) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == made.choices[0].message.parsed
    assert {"chunk", "content.delta", "content.done"} <= set(events)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**asked, max_tokens=2)


def test_a_schema_written_out(client: openai.OpenAI) -> None:
    schema = {
        "name": "row",
        "strict": True,
        "schema": {**Row.model_json_schema(), "additionalProperties": False},
    }
    made = client.chat.completions.create(
        model="tiny-draft",
        messages=MESSAGES,
        response_format={"type": "json_schema", "json_schema": schema},
        max_tokens=100,
        temperature=0,
    )
    Row.model_validate_json(made.choices[0].message.content or "")


# ---- several at once ----


def test_asynchronous_and_streams(server: Server, llm: LLM) -> None:
    prompts = [PROMPT, "import os\n", "class Queue:\n", "x = [1, 2, "]
    want = [o.text for o in llm.generate(prompts, llm.sampling(temperature=0, max_tokens=8))]

    async def ask() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:

            async def whole(prompt: str) -> str:
                made = await client.completions.create(
                    model="tiny-draft", prompt=prompt, max_tokens=8, temperature=0
                )
                return made.choices[0].text

            async def pieces(prompt: str) -> str:
                stream = await client.completions.create(
                    model="tiny-draft", prompt=prompt, max_tokens=8, temperature=0, stream=True
                )
                return "".join([event.choices[0].text async for event in stream])

            return (
                list(await asyncio.gather(*map(whole, prompts))),
                list(await asyncio.gather(*map(pieces, prompts))),
            )

    assert asyncio.run(ask()) == (want, want)


# ---- giving up ----


def test_closing_a_stream_cancels(client: openai.OpenAI, server: Server) -> None:
    before, _ = counts(server, "cancelled")
    with client.completions.create(**LONG, stream=True) as stream:
        next(iter(stream))
    until(lambda: counts(server, "cancelled") == (before + 1, 0))


def test_breaking_out_of_an_asynchronous_stream_cancels(server: Server) -> None:
    before, _ = counts(server, "cancelled")

    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            async with await client.completions.create(**LONG, stream=True) as stream:
                async for _ in stream:
                    break

    asyncio.run(ask())
    until(lambda: counts(server, "cancelled") == (before + 1, 0))


def test_a_timeout_cancels(client: openai.OpenAI, server: Server) -> None:
    before, _ = counts(server, "cancelled")
    with pytest.raises(openai.APITimeoutError):
        client.completions.create(**LONG, timeout=httpx2.Timeout(30, read=0.1))
    until(lambda: counts(server, "cancelled") == (before + 1, 0))


# ---- errors ----


@pytest.mark.parametrize(
    "body,kind,code,param",
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": -1}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"max_tokens": 4096}, openai.BadRequestError, "context_length_exceeded", "max_tokens"),
        ({"messages": []}, openai.BadRequestError, "invalid_value", None),
        ({"logit_bias": {"99999999": 1}}, openai.BadRequestError, "invalid_value", None),
        ({"top_logprobs": 3}, openai.BadRequestError, "invalid_value", "top_logprobs"),
        ({"stream": True, "n": 99}, openai.BadRequestError, "invalid_value", "n"),
        (
            {"extra_body": {"use_beam_search": True}},
            openai.BadRequestError,
            "unsupported_parameter",
            "use_beam_search",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_clients_errors(
    client: openai.OpenAI, body: dict[str, Any], kind: type, code: str, param: str | None
) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        client.chat.completions.create(**{"model": "tiny-draft", "messages": MESSAGES, **body})
    told = error.value
    assert type(told) is kind and (told.code, told.param) == (code, param)
    assert told.request_id == told.body["request_id"] and told.message  # type: ignore[index]


def test_a_wrong_key(narrow: Server) -> None:
    with openai.OpenAI(base_url=f"{narrow.url}/v1", api_key="another-key", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as error:
            client.models.list()
        assert error.value.code == "invalid_api_key"
    with openai.OpenAI(base_url=f"{narrow.url}/v1", api_key=KEY) as client:
        assert [model.id for model in client.models.list()] == ["tiny-draft"]


def test_a_full_queue_is_tried_again(narrow: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    with openai.OpenAI(base_url=f"{narrow.url}/v1", api_key=KEY, max_retries=0) as client:
        streams = [
            client.completions.create(**{**LONG, "n": 1}, stream=True, extra_body={"ignore_eos": True})
            for _ in range(2)
        ]
        short: dict[str, Any] = {"model": "tiny-draft", "prompt": PROMPT, "max_tokens": 2}
        with pytest.raises(openai.RateLimitError) as error:
            client.completions.create(**short)
        assert error.value.code == "queue_full" and error.value.response.headers["retry-after"] == "2"

        def wait(seconds: float) -> None:
            """Instead of sleeping: the queue empties meanwhile."""
            slept.append(seconds)
            for stream in streams:
                stream.close()
            until(lambda: counts(narrow, "cancelled")[0] + counts(narrow, "completed")[0] == 2)

        monkeypatch.setattr("openai._base_client.time.sleep", wait)
        made = client.with_options(max_retries=1).completions.create(**short)
    assert made.usage is not None and made.usage.completion_tokens <= 2
    assert slept[0] == 2, "what Retry-After said"
