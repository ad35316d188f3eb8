"""/v1/completions: the answers of the Python API, in OpenAI's shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from headrace import LLM
from tests.server.running import Server

PROMPT = "def read_lines(path):\n"


@pytest.fixture
def ask(server: Server) -> Iterator[Any]:
    with server.client() as client:

        def post(**body: Any) -> dict[str, Any]:
            answer = client.post("/v1/completions", json={"model": "tiny-draft", "temperature": 0, **body})
            assert answer.status_code == 200, answer.text
            return answer.json()

        yield post


def stream(server: Server, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a streamed answer, without the [DONE] that must end it."""
    with server.client() as client, client.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_the_same_tokens_as_the_python_api(ask: Any, llm: LLM) -> None:
    [want] = llm.generate(PROMPT, llm.sampling(temperature=0, max_tokens=24))
    got = ask(prompt=PROMPT, max_tokens=24, return_token_ids=True, cache_salt="fresh")
    [choice] = got["choices"]
    assert choice["text"] == want.text and tuple(choice["token_ids"]) == want.samples[0].token_ids
    assert choice["finish_reason"] == want.samples[0].finish_reason
    count = len(want.samples[0].token_ids)
    prompt = len(want.prompt_token_ids)
    assert got["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": count,
        "total_tokens": prompt + count,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert got["object"] == "text_completion" and got["model"] == "tiny-draft"


def test_sixteen_tokens_by_default(ask: Any) -> None:
    assert ask(prompt=PROMPT, ignore_eos=True)["usage"]["completion_tokens"] == 16


def test_a_stream_says_the_same(ask: Any, server: Server) -> None:
    body = {"prompt": PROMPT, "max_tokens": 20, "temperature": 0}
    events = stream(server, "/v1/completions", {**body, "stream_options": {"include_usage": True}})
    whole = ask(
        **body
    )  # of which the prefix cache has the prompt by now, or not: it may be shorter than a page
    events[-1]["usage"]["prompt_tokens_details"] = whole["usage"]["prompt_tokens_details"]
    *pieces, last = events
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == whole["choices"][0]["text"]
    assert [p["choices"][0]["finish_reason"] for p in pieces][-1] == whole["choices"][0]["finish_reason"]
    assert {(p["id"], p["created"], p["object"]) for p in events} == {
        (last["id"], last["created"], "text_completion")
    }


def test_usage_goes_on_while_it_streams(server: Server) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": PROMPT, "max_tokens": 5, "ignore_eos": True, "stream_options": options}
    counts = [event["usage"]["completion_tokens"] for event in stream(server, "/v1/completions", body)]
    assert counts == sorted(counts) and counts[-1] == 5


def test_several_prompts_in_their_order(ask: Any, llm: LLM) -> None:
    prompts = [PROMPT, "class Queue:\n", "import os\n"]
    want = [output.text for output in llm.generate(prompts, llm.sampling(temperature=0, max_tokens=8))]
    ids = [llm.tokenizer.encode(prompt) for prompt in prompts]
    for given in (prompts, ids):
        choices = ask(prompt=given, max_tokens=8)["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2]
        assert [choice["text"] for choice in choices] == want
    assert ask(prompt=ids[1], max_tokens=8)["choices"][0]["text"] == want[1]


def test_samples_are_repeatable_by_their_seed(ask: Any, llm: LLM) -> None:
    params = llm.sampling(temperature=1.0, seed=7, n=3, max_tokens=8)
    [want] = llm.generate(PROMPT, params)
    got = ask(prompt=PROMPT, temperature=1.0, seed=7, n=3, max_tokens=8)
    assert [choice["text"] for choice in got["choices"]] == [sample.text for sample in want.samples]


def test_stop_strings(ask: Any, server: Server) -> None:
    whole = ask(prompt=PROMPT, max_tokens=24)["choices"][0]["text"]
    stop = whole[6:9]
    body = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "stop": [stop]}
    [choice] = ask(**body)["choices"]
    assert choice["text"] == whole[: whole.index(stop)] and choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == stop
    shown = ask(**body, include_stop_str_in_output=True)["choices"][0]["text"]
    assert shown == choice["text"] + stop
    streamed = stream(server, "/v1/completions", body)
    assert "".join(event["choices"][0]["text"] for event in streamed) == choice["text"]


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_echo_scores_the_prompt(ask: Any, llm: LLM, server: Server, max_tokens: int) -> None:
    """What lm-eval asks: the log-probabilities of a prompt's own tokens, one fewer than none for the first."""
    params = llm.sampling(temperature=0, max_tokens=max(max_tokens, 1), logprobs=2, prompt_logprobs=2)
    [want] = llm.generate(PROMPT, params)
    ids = [*want.prompt_token_ids, *want.samples[0].token_ids[:max_tokens]]
    items = [*want.prompt_logprobs, *want.samples[0].logprobs[:max_tokens]]
    body = {"prompt": list(want.prompt_token_ids), "echo": True, "logprobs": 2, "max_tokens": max_tokens}
    answer = ask(**body)
    [choice] = answer["choices"]
    got = choice["logprobs"]
    assert choice["text"] == llm.tokenizer.decode(ids)
    assert got["tokens"] == [llm.tokenizer.decode([token], skip_special=False) for token in ids]
    assert got["token_logprobs"][0] is None and got["top_logprobs"][0] is None
    assert got["token_logprobs"][1:] == pytest.approx([item.logprob for item in items], abs=1e-4)
    for text, own, top in zip(
        got["tokens"][1:], got["token_logprobs"][1:], got["top_logprobs"][1:], strict=True
    ):
        assert top[text] == own and 2 <= len(top) <= 3
        assert (own == max(top.values())) == (max(top, key=lambda name: top[name]) == text)
    for token, offset, text in zip(ids, got["text_offset"], got["tokens"], strict=True):
        assert token in llm.tokenizer.special or choice["text"][offset : offset + len(text)] == text
    assert answer["usage"]["completion_tokens"] == max_tokens
    events = stream(server, "/v1/completions", {**body, "temperature": 0})
    pieces = [event["choices"][0] for event in events]
    assert "".join(piece["text"] for piece in pieces) == choice["text"]
    for name in got:
        assert [value for piece in pieces if piece["logprobs"] for value in piece["logprobs"][name]] == got[
            name
        ]


def test_prompt_logprobs_in_vllms_shape(ask: Any, llm: LLM) -> None:
    [want] = llm.generate(PROMPT, llm.sampling(temperature=0, max_tokens=1, prompt_logprobs=1))
    got = ask(prompt=PROMPT, max_tokens=1, prompt_logprobs=1)["choices"][0]["prompt_logprobs"]
    assert got[0] is None and len(got) == len(want.prompt_token_ids)
    for entry, item in zip(got[1:], want.prompt_logprobs, strict=True):
        assert entry[str(item.token)]["logprob"] == pytest.approx(item.logprob, abs=1e-4)


def test_tokens_as_ids(ask: Any, llm: LLM) -> None:
    choice = ask(
        prompt=PROMPT, max_tokens=2, logprobs=0, return_tokens_as_token_ids=True, return_token_ids=True
    )["choices"][0]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in choice["token_ids"]]
    assert choice["prompt_token_ids"] == llm.tokenizer.encode(PROMPT)
