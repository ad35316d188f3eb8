"""Bodies and requests gone wrong, from good ones: seeded, so that what fails can be made again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

GOOD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "import os\n", "max_tokens": 3}),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2, "n": 2, "temperature": 0.7, "seed": 1}),
    ("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 2, "echo": True, "logprobs": 3}),
    ("/v1/completions", {"prompt": [[1], [2, 3]], "max_tokens": 1, "stop": ["x", "yy"], "top_k": 5}),
    (
        "/v1/completions",
        {"prompt": "a", "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}},
    ),
    (
        "/v1/completions",
        {"prompt": "a", "max_tokens": 4, "logit_bias": {"5": -3.5}, "min_p": 0.1, "top_p": 0.9},
    ),
    ("/v1/completions", {"prompt": "a", "max_tokens": 4, "guided_regex": "[ab]{2}", "priority": 3}),
    (
        "/v1/completions",
        {"prompt": "a", "max_tokens": 8, "guided_json": {"type": "integer"}, "cache_salt": "s"},
    ),
    ("/v1/completions", {"prompt": "a", "max_tokens": 2, "prompt_logprobs": 2, "repetition_penalty": 1.2}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}),
    (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": "Short."},
                {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            ],
            "max_completion_tokens": 2,
            "logprobs": True,
            "top_logprobs": 2,
            "stream": True,
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 6,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "boolean"}},
            },
            "chat_template_kwargs": {"thinking": False},
        },
    ),
    ("/tokenize", {"prompt": "import os", "return_token_strs": True}),
    ("/tokenize", {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": True}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
]
VALUES: list[str] = [
    "null", "true", "false", "0", "-0.0", "-1", "1e999", "-1e999", "NaN", "Infinity", "1e-320", "0.1", "1.0",
    str(2**31), str(2**53 + 1), str(2**63), str(2**64), str(-(2**63) - 1), "9" * 400, "1" + "0" * 5000, "[]", "{}",
    '""', '"a"', '"\\u0000"', '"\\ud800"', '"\\udfff\\ud800"', '"\\u202e\\u200d"', '"😀"', '"<|end|>"', '"../../x"',
    '"%s%n{0}"', '"' + "x" * 100_000 + '"', '"' + "\\u0001" * 2000 + '"', "[null]", "[[[[]]]]", '{"": {}}',
    "[" + "0," * 20_000 + "0]", "[" * 500 + "]" * 500, '{"a":' * 500 + "1" + "}" * 500, '["a", 1]', '[-1]', "[4095]",
    "[4096]", "[1e0]", '{"type": "json_object"}', '{"$ref": "#"}', '"(a+)+$"', '"a{0,1000}"', '[{"role": "user"}]',
]  # fmt: skip
"""As they are written in JSON, or nearly."""
NAMES = ["prompt", "messages", "n", "max_tokens", "stream", "stop", "logprobs", "seed", "temperature", "top_p",
         "guided_json", "guided_choice", "guided_grammar", "response_format", "logit_bias", "min_tokens", "model",
         "__proto__", "", "\u0000", "tokens", "stop_token_ids", "request_id", "suffix", "tools"]  # fmt: skip


def body(chosen: random.Random) -> tuple[str, bytes]:
    """A path, and a body for it."""
    path, good = chosen.choice(GOOD)
    text = json.dumps(good, ensure_ascii=False)
    for _ in range(chosen.choice((1, 1, 1, 2, 3))):
        text = chosen.choice((_value, _value, _value, _extra, _double))(text, chosen)
    data = text.encode("utf-8", "surrogatepass")
    if chosen.random() < 0.3:
        data = chosen.choice(_BYTES)(data, chosen)
    return path if chosen.random() < 0.95 else chosen.choice(GOOD)[0], data


def _places(text: str) -> list[tuple[int, int]]:
    """Where values of a JSON text begin and end, those of nested objects and lists too."""
    found, decoder = [], json.JSONDecoder(strict=False)
    for i, letter in enumerate(text):
        if letter in ":[,":
            try:
                value, end = decoder.raw_decode(text, i + 1 + (text[i + 1 : i + 2] == " "))
            except (ValueError, RecursionError):
                continue
            del value
            found.append((i + 1, end))
    return found


def _value(text: str, chosen: random.Random) -> str:
    places = _places(text[:5000])
    if not places:
        return text
    begin, end = chosen.choice(places)
    return text[:begin] + chosen.choice(VALUES) + text[end:]


def _extra(text: str, chosen: random.Random) -> str:
    return f"{{{json.dumps(chosen.choice(NAMES))}: {chosen.choice(VALUES)}, {text[1:]}"


def _double(text: str, chosen: random.Random) -> str:
    """Some of it twice: names that occur again, mostly."""
    begin = chosen.randrange(len(text))
    return text[:begin] + text[begin : begin + chosen.randrange(40)] + text[begin:]


_BYTES: list[Callable[[bytes, random.Random], bytes]] = [
    lambda data, chosen: data[: chosen.randrange(len(data) + 1)],
    lambda data, chosen: b"\xef\xbb\xbf" + data,
    lambda data, chosen: data.decode("utf-8", "replace").encode("utf-16"),
    lambda data, chosen: data + data,
    lambda data, chosen: _at(data, chosen, bytes([chosen.randrange(256)])),
    lambda data, chosen: _at(data, chosen, b"\xff\xfe\x00"),
    lambda data, chosen: _at(data, chosen, b"\xed\xa0\x80"),
    lambda data, chosen: _at(data, chosen, chosen.choice((b"[", b"{", b'"', b"\\", b"\x00"))),
    lambda data, chosen: chosen.randbytes(chosen.randrange(200)),
    lambda data, chosen: b"[" * chosen.choice((100, 10_000, 100_000)) + data,
]


def _at(data: bytes, chosen: random.Random, piece: bytes) -> bytes:
    place = chosen.randrange(len(data) + 1)
    return data[:place] + piece + data[place + chosen.randrange(2) :]


LINES = [
    "Content-Length: 5", "Content-Length: -1", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Host: evil",
    "Expect: 100-continue", "Host:", "Content-Type: application/xml", "Connection: close", "Connection: upgrade",
    "Upgrade: h2c", "X-Request-Id: \u00ff", "X: " + "a" * 40_000, " X: folded", "no colon", "\x00: a",
    "Authorization: Bearer \u00e9",
]  # fmt: skip
METHODS = ["POST", "GET", "PUT", "HEAD", "OPTIONS", "TRACE", "CONNECT", "post", "P\u00d6ST", ""]
VERSIONS = ["HTTP/1.1", "HTTP/1.0", "HTTP/9.9", ""]
TARGETS = [
    "/v1/completions", "/v1/models/%2e%2e%2f", "/v1/models/" + "a" * 3000, "//evil/v1/models", "/%00", "/%ff", "*",
    "http://evil/v1/models", "/v1/models/a?b=%", "/../../etc/passwd", "/openapi.json", "/live", "/tokenize#x",
]  # fmt: skip


def request(chosen: random.Random) -> bytes:
    """A whole request, as bytes."""
    _, data = body(chosen)
    data = data[:2000]
    lines = [f"Host: localhost\r\nContent-Length: {len(data)}"]
    for _ in range(chosen.randrange(4)):
        lines.insert(chosen.randrange(len(lines) + 1), chosen.choice(LINES))
    first = " ".join(map(chosen.choice, (METHODS, TARGETS, VERSIONS)))
    made = "\r\n".join([first, *lines, "", ""]).encode("latin-1") + data
    return _at(made, chosen, chosen.randbytes(3)) if chosen.random() < 0.3 else made
