"""What a request may ask beside the plain: each parameter does what it says, or is refused, or named as ignored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from headrace import LLM
from tests.server.running import Server, serving
from tests.server.test_completions import stream

PROMPT = "def read_lines(path):\n"
MESSAGES = [{"role": "user", "content": "Copy this: abc def"}]


@pytest.fixture
def post(server: Server) -> Iterator[Any]:
    with server.client() as client:

        def send(path: str, **body: Any) -> Any:
            answer = client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            return answer

        yield send


@pytest.fixture
def complete(post: Any) -> Any:
    return lambda **body: post("/v1/completions", **{"prompt": PROMPT, "temperature": 0, **body}).json()


@pytest.fixture
def chat(post: Any) -> Any:
    return lambda **body: post(
        "/v1/chat/completions", **{"messages": MESSAGES, "temperature": 0, "max_tokens": 8, **body}
    )


def refused(server: Server, path: str, **body: Any) -> dict[str, Any]:
    with server.client() as client:
        answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


# ---- which tokens ----


def test_best_of_keeps_the_likeliest(complete: Any) -> None:
    asked = {"temperature": 1.0, "seed": 5, "max_tokens": 6, "logprobs": 0}
    drawn = complete(**asked, n=6)["choices"]
    best = complete(**asked, n=2, best_of=6)
    mean = [sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["tokens"]) for c in drawn]
    order = sorted(range(6), key=lambda i: -mean[i])
    assert [c["text"] for c in best["choices"]] == [drawn[i]["text"] for i in order[:2]]
    assert [c["index"] for c in best["choices"]] == [0, 1] and order[:2] != [0, 1]
    spent = sum(len(choice["logprobs"]["tokens"]) for choice in drawn)
    assert best["usage"]["completion_tokens"] == spent, "all that were drawn are paid for"
    several = complete(**{**asked, "logprobs": None}, prompt=[PROMPT, "import os\n"], best_of=6)["choices"]
    assert several[0]["text"] == drawn[order[0]]["text"] and [c["index"] for c in several] == [0, 1]
    assert several[0]["logprobs"] is None


def test_allowed_tokens(complete: Any, llm: LLM) -> None:
    allowed = [llm.tokenizer.encode(word, add_special=False)[0] for word in ("yes", "no", "(")]
    made = complete(allowed_token_ids=allowed, max_tokens=6, return_token_ids=True)["choices"][0]
    assert set(made["token_ids"]) <= set(allowed) and len(made["token_ids"]) == 6


def test_bad_words(complete: Any) -> None:
    plain = complete(max_tokens=24)["choices"][0]["text"]
    word = next(word for word in plain.split() if word.isalpha())
    made = complete(max_tokens=24, bad_words=[word])["choices"][0]["text"]
    assert word in plain.split() and word not in made.split()


def test_biases_as_pairs(complete: Any, llm: LLM) -> None:
    [first] = complete(max_tokens=1, return_token_ids=True)["choices"][0]["token_ids"]
    other = llm.tokenizer.encode("yes", add_special=False)[0]
    pairs = complete(max_tokens=1, logit_bias=[[other, 100]], return_token_ids=True)["choices"][0]
    assert pairs["token_ids"] == [other]
    never = complete(max_tokens=1, logit_bias=[[first, False]], return_token_ids=True)["choices"][0]
    assert never["token_ids"] != [first]
    assert complete(max_tokens=4, top_k=-1)["choices"] == complete(max_tokens=4)["choices"]


def test_a_request_that_forbids_everything_is_told(server: Server, llm: LLM) -> None:
    token = llm.tokenizer.encode("yes", add_special=False)[0]
    body = {"prompt": PROMPT, "allowed_token_ids": [token], "logit_bias": [[token, False]]}
    error = refused(server, "/v1/completions", **body)
    assert error["code"] == "generation_failed" and "forbids every token" in error["message"]


# ---- the prompt ----


def test_a_prompt_is_cut_only_when_asked(complete: Any, llm: LLM, server: Server) -> None:
    ids = llm.tokenizer.encode(PROMPT)
    for side, kept in (("left", ids[-4:]), ("right", ids[:4]), (None, ids[-4:])):
        made = complete(truncate_prompt_tokens=4, truncation_side=side, return_token_ids=True, max_tokens=1)
        assert made["choices"][0]["prompt_token_ids"] == kept and made["usage"]["prompt_tokens"] == 4
    echoed = complete(truncate_prompt_tokens=4, echo=True, max_tokens=0)["choices"][0]["text"]
    assert echoed == llm.tokenizer.decode(ids[-4:])
    long = [5] * 3000
    assert refused(server, "/v1/completions", prompt=long)["code"] == "context_length_exceeded"
    fits = complete(prompt=long, truncate_prompt_tokens=-1, max_tokens=8, ignore_eos=True)["usage"]
    assert (fits["prompt_tokens"], fits["completion_tokens"]) == (2040, 8)


def test_special_tokens_of_a_prompt_are_text_unless_asked(complete: Any, llm: LLM) -> None:
    text, ids = llm.template.encode(llm.tokenizer, MESSAGES)
    asked = {"prompt": text, "add_special_tokens": False, "max_tokens": 4, "return_token_ids": True}
    assert complete(**asked, parse_special=True)["choices"][0]["prompt_token_ids"] == ids
    assert complete(**asked)["choices"][0]["prompt_token_ids"] != ids


def test_a_message_is_continued(chat: Any, llm: LLM, server: Server) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "abc "}]
    _, begun = llm.template.encode(llm.tokenizer, MESSAGES)
    made = chat(messages=messages, continue_final_message=True, return_token_ids=True).json()
    assert made["prompt_token_ids"] == [*begun, *llm.tokenizer.encode("abc ", add_special=False)]
    both = {"add_generation_prompt": True, "continue_final_message": True, "messages": messages}
    assert refused(server, "/v1/chat/completions", **both)["param"] == "continue_final_message"


def test_special_tokens_before_a_chat(chat: Any, llm: LLM) -> None:
    _, ids = llm.template.encode(llm.tokenizer, MESSAGES)
    made = chat(add_special_tokens=True, return_token_ids=True).json()
    assert made["prompt_token_ids"] == [*llm.tokenizer.encode(""), *ids]


def test_what_the_template_does_not_read_is_said(chat: Any, server: Server) -> None:
    made = chat(reasoning_effort="low", chat_template_kwargs={"enable_thinking": False}, user="me")
    assert made.headers["x-ignored-params"] == "user, enable_thinking, reasoning_effort"
    error = refused(server, "/v1/chat/completions", messages=MESSAGES, documents=[{"text": "x"}])
    assert "reads no documents" in error["message"]


# ---- what comes back ----


def test_cached_tokens_and_timings(complete: Any, server: Server) -> None:
    body = {"prompt": "# cached\n" * 40, "max_tokens": 6, "ignore_eos": True, "cache_salt": "timings"}
    first, second = complete(**body), complete(**body)
    details = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in (first, second)]
    prompt = second["usage"]["prompt_tokens"]
    assert details[0] == 0 and prompt - 16 <= details[1] < prompt
    for answer, cached in zip((first, second), details, strict=True):
        times = answer["timings"]
        assert times["cache_n"] == cached and times["prompt_n"] == prompt - cached
        assert times["predicted_n"] == 6 and times["prompt_ms"] > 0 and times["predicted_ms"] > 0
        assert times["predicted_per_second"] == pytest.approx(6e3 / times["predicted_ms"])
    pieces = stream(server, "/v1/completions", {**body, "timings_per_token": True})
    counts = [piece["timings"]["predicted_n"] for piece in pieces]
    assert counts == sorted(counts) and counts[-1] == 6
    *some, last = stream(server, "/v1/completions", body)
    assert "timings" in last and not any("timings" in piece for piece in some)
    samples = complete(**body, n=3, temperature=1.0)["usage"]
    assert samples["prompt_tokens_details"]["cached_tokens"] == details[1], "counted once, not per sample"


def test_bodies_as_load_generators_send_them(server: Server, post: Any) -> None:
    """guidellm and vLLM's benchmark: nulls, the exact length, usage in every event."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    exact = {"stream": True, "stream_options": options, "ignore_eos": True, "stop": None}
    guide = {**exact, "model": "tiny-draft", "max_tokens": 12, "max_completion_tokens": 12}
    bench = {**exact, "model": "tiny-draft", "temperature": 0.0, "repetition_penalty": 1.0, "logprobs": None}
    for path, body in (
        ("/v1/chat/completions", {**guide, "messages": MESSAGES}),
        ("/v1/completions", {**bench, "prompt": PROMPT, "max_tokens": 12}),
        ("/v1/chat/completions", {**bench, "messages": MESSAGES, "max_completion_tokens": 12}),
        ("/v1/completions", {**guide, "prompt": PROMPT}),
    ):
        events = stream(server, path, body)
        assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 12
        assert all(event["usage"]["prompt_tokens"] > 0 for event in events)


# ---- names of others ----


def test_ours_wins_over_the_names_of_others(complete: Any) -> None:
    assert complete(max_tokens=3, n_predict=8, ignore_eos=True)["usage"]["completion_tokens"] == 3


def test_what_asks_for_nothing_is_let_through(post: Any) -> None:
    nothing = {"suffix": "", "use_beam_search": False, "length_penalty": 1.0, "early_stopping": False}
    made = post("/v1/completions", prompt=PROMPT, max_tokens=1, **nothing, prompt_embeds=None, n_predict=None)
    assert "x-ignored-params" not in made.headers


@pytest.mark.slow
def test_strict_servers_name_the_nearest() -> None:
    with serving("--model", "tiny-draft", "--threads", "1", "--strict-params") as server:
        error = refused(server, "/v1/completions", prompt="a", top_kk=3)
        assert error["code"] == "unknown_parameter" and "did you mean 'top_k'?" in error["message"]
        with server.client() as client:
            body = {"prompt": "a", "max_tokens": 1, "user": "me"}
            assert client.post("/v1/completions", json=body).headers["x-ignored-params"] == "user"
