"""What a server refuses: OpenAI's error body, a status that says whose fault it is, and nothing about the inside."""

from __future__ import annotations

import json
import re
import socket
from typing import Any

import pytest

from tests.server.running import Server, metric, serving

INF = float("inf")
COMPLETIONS = [
    ({}, "prompt", "required"),
    ({"prompt": ""}, "prompt", "empty"),
    ({"prompt": []}, "prompt", "prompt must be"),
    ({"prompt": [[]]}, None, "empty"),
    ({"prompt": ["a", [1]]}, "prompt", "prompt must be"),
    ({"prompt": ["a"] * 65}, "prompt", "at most 64"),
    ({"prompt": ["a"] * 33, "n": 2, "temperature": 1}, "n", "at most 64"),
    ({"prompt": [10**6]}, None, "vocabulary"),
    ({"prompt": [-1]}, None, "vocabulary"),
    ({"prompt": "a", "max_tokens": -1}, "max_tokens", "at least 1"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens", "echo"),
    ({"prompt": "a", "max_tokens": 4096}, "max_tokens", "4098, and the context holds 2048"),
    ({"prompt": "a", "max_tokens": "8"}, "max_tokens", "Expected `int"),
    ({"prompt": "a", "max_tokens": True}, "max_tokens", "Expected `int"),
    ({"prompt": "a", "n": 9}, "n", "at most 8"),
    ({"prompt": "a", "n": 2, "temperature": 0}, "n", "equal samples"),
    ({"prompt": "a", "best_of": 9}, "best_of", "at most 8"),
    ({"prompt": "a", "best_of": 2, "n": 3}, "best_of", "at least n=3"),
    ({"prompt": "a", "best_of": 2, "stream": True}, "best_of", "stream"),
    ({"prompt": "a", "best_of": 2, "temperature": 0}, "best_of", "equal samples"),
    ({"prompt": ["a"] * 33, "best_of": 2, "temperature": 1}, "n", "at most 64"),
    ({"prompt": "a", "use_beam_search": True}, "use_beam_search", "not supported"),
    ({"prompt": "a", "length_penalty": 1.5}, "length_penalty", "beam search"),
    ({"prompt": "a", "prompt_embeds": "AAAA"}, "prompt_embeds", "not supported"),
    ({"prompt": "a", "n_predict": 8}, "n_predict", "called max_tokens here"),
    ({"prompt": "a", "repeat_penalty": 1.1}, "repeat_penalty", "called repetition_penalty here"),
    ({"prompt": "a", "allowed_token_ids": []}, "allowed_token_ids", "nothing could follow"),
    ({"prompt": "a", "allowed_token_ids": [10**6]}, None, "vocabulary"),
    ({"prompt": "a", "allowed_token_ids": [-1]}, "allowed_token_ids", "not a token id"),
    ({"prompt": "a", "allowed_token_ids": [1] * 1025}, "allowed_token_ids", "at most 1024"),
    ({"prompt": "a", "bad_words": [""]}, "bad_words", "1 to 1024 characters"),
    ({"prompt": "a", "bad_words": ["x"] * 65}, "bad_words", "at most 64"),
    ({"prompt": "a", "bad_words": ["xyzzy" * 200] * 3}, "bad_words_ids", "at most 1024"),
    ({"prompt": "a", "logit_bias": [[1, True]]}, "logit_bias", "number, or false"),
    ({"prompt": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1"),
    ({"prompt": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "at least 1"),
    ({"prompt": "a", "truncation_side": "left"}, "truncation_side", "only for"),
    ({"prompt": "a", "truncate_prompt_tokens": 1, "truncation_side": "mid"}, "truncation_side", "Invalid"),
    ({"prompt": "a", "logprobs": 21}, "logprobs", "between 0 and 20"),
    ({"prompt": "a", "logprobs": True}, "logprobs", "Expected `int"),
    ({"prompt": "a", "temperature": -1}, "temperature", "out of range"),
    ({"prompt": "a", "top_p": 0}, "top_p", "out of range"),
    ({"prompt": "a", "stop": [""]}, "stop", "1 to 1024 characters"),
    ({"prompt": "a", "stop": ["x"] * 65}, "stop", "at most 64"),
    ({"prompt": "a", "logit_bias": {"999999": 1}}, None, "vocabulary"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", "Expected `int"),
    ({"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias", "out of range"),
    ({"prompt": "a", "logit_bias": {str(i): 0 for i in range(1025)}}, "logit_bias", "1024"),
    ({"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
    ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options", "stream=true"),
    ({"prompt": "a", "stream": True, "prompt_logprobs": 1}, "prompt_logprobs", "stream"),
    ({"prompt": "a", "cache_salt": ""}, "cache_salt", "1 to 1024"),
    ({"prompt": "a", "request_id": "../x"}, "request_id", "A-Z"),
    ({"prompt": "a", "seed": 2**70}, "seed", ""),
]


def error_of(answer: Any) -> dict[str, Any]:
    error = answer.json()["error"]
    assert {"message", "type", "param", "code", "request_id"} == set(error)
    assert answer.headers["x-request-id"] == error["request_id"]
    for inside in ("Traceback", "site-packages", "0x", ".py", "headrace/"):
        assert inside not in error["message"]
    return error


@pytest.mark.parametrize("body,param,text", COMPLETIONS, ids=lambda value: json.dumps(value)[:40])
def test_bad_values(server: Server, body: dict[str, Any], param: str | None, text: str) -> None:
    with server.client() as client:
        answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert error["param"] == param and text in error["message"] and error["type"] == "invalid_request_error"


def test_too_long_a_prompt_names_both_numbers(server: Server) -> None:
    with server.client() as client:
        for length in (2048, 2049, 20480):
            answer = client.post("/v1/completions", json={"prompt": [1] * length})
            error = error_of(answer)
            assert answer.status_code == 400 and error["code"] == "context_length_exceeded"
            assert f"{length} tokens" in error["message"] and "2048" in error["message"]
        answer = client.post("/v1/completions", json={"prompt": [1] * 2047, "temperature": 0})
        usage = answer.json()["usage"]
        assert [usage[f"{part}_tokens"] for part in ("prompt", "completion", "total")] == [2047, 1, 2048]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"prompt": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff"}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"prompt": ' + b"[" * 100_000,
        b'{"a": ' * 50_000,
    ],
    ids=lambda data: repr(data[:24]),
)
def test_bad_json(server: Server, data: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        with server.client() as client:
            answer = client.post(path, content=data, headers={"content-type": "application/json"})
        assert answer.status_code == 400, (path, answer.text)
        error_of(answer)


def test_unknown_parameters_are_named(server: Server) -> None:
    body = {"prompt": "a", "max_tokens": 1, "frequencypenalty": 1, "user": "me"}
    with server.client() as client:
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 200 and answer.headers["x-ignored-params"] == "frequencypenalty, user"
        answer = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, "✓\r\nX-Evil: 1": 1})
        assert answer.status_code == 200 and answer.headers["x-ignored-params"] == "?"


def test_other_models_and_paths(server: Server) -> None:
    with server.client() as client:
        answer = client.post("/v1/completions", json={"prompt": "a", "model": "gpt-9"})
        assert answer.status_code == 404 and error_of(answer)["code"] == "model_not_found"
        answer = client.get("/v1/nothing")
        assert answer.status_code == 404 and error_of(answer)["code"] == "not_found"
        answer = client.get("/v1/completions")
        assert answer.status_code == 405 and error_of(answer)["code"] == "method_not_allowed"


def test_large_bodies_and_headers(server: Server) -> None:
    with server.client() as client:
        answer = client.post("/v1/completions", content=b" " * ((4 << 20) + 1))
        assert answer.status_code == 413 and error_of(answer)["code"] == "body_too_large"
        pieces = (b" " * 65536 for _ in range(80))  # without a length
        answer = client.post("/v1/completions", content=pieces)
        assert answer.status_code == 413
        answer = client.get("/v1/models", headers={"x-large": "a" * 40_000})
        assert answer.status_code == 431 and error_of(answer)["code"] == "headers_too_large"
        assert client.get("/v1/models").status_code == 200


def test_headers_that_never_end(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000)
        assert sock.recv(64).startswith(b"HTTP/1.1 400")


def test_only_our_own_names_are_answered(server: Server) -> None:
    with server.client() as client:
        answer = client.get("/v1/models", headers={"host": "evil.example"})
        assert answer.status_code == 403 and error_of(answer)["code"] == "host_not_allowed"
        assert client.get("/v1/models", headers={"host": "localhost:1"}).status_code == 200


def test_request_ids_come_back(server: Server) -> None:
    with server.client() as client:
        assert client.get("/version", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
        made = client.get("/version", headers={"x-request-id": "a b"}).headers["x-request-id"]
        assert re.fullmatch(r"req-[0-9a-f]{24}", made)
        answer = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, "request_id": "mine-2"})
        assert answer.json()["id"] == "cmpl-mine-2"


def test_every_route_needs_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.server.gate import OPEN

    with serving("--model", "tiny-draft", "--threads", "1", env={"HEADRACE_API_KEY": "secret-key"}) as server:
        with server.client() as client:
            paths = client.get("/openapi.json", headers={"authorization": "Bearer secret-key"}).json()[
                "paths"
            ]
            assert len(paths) > 8
            for path, methods in paths.items():
                for method in methods:
                    call = path.replace("{name}", "tiny-draft")
                    for key in (None, "Bearer wrong-key", "Basic secret-key", "Bearer", "secret-key"):
                        headers = {} if key is None else {"authorization": key}
                        status = client.request(method, call, headers=headers).status_code
                        assert (status == 401) == (path not in OPEN), (path, key, status)
                    good = client.request(method, call, headers={"authorization": "bearer secret-key"})
                    assert good.status_code in (200, 400)
        assert b"secret-key" not in server.log.read_bytes()


def test_refused_requests_are_counted(server: Server) -> None:
    with server.client() as client:
        before = metric(client.get("/metrics").text, "headrace_requests_ended_total", outcome="rejected")
        client.post("/v1/completions", json={"prompt": ""})
        client.post("/v1/completions", json={"prompt": "a", "n": 99})
        client.post("/v1/chat/completions", json={"messages": []})
        after = metric(client.get("/metrics").text, "headrace_requests_ended_total", outcome="rejected")
    assert after - before == 3
