"""Answers in a form: what comes back parses, what is no form or too much of one is refused, and nobody else waits."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from headrace import box
from headrace.params import Grammar
from headrace.server import grammars
from headrace.server.errors import ApiError
from tests.server.running import Server

MESSAGES: Any = [{"role": "user", "content": "Give me a record."}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    asked = {"model": "tiny-draft", "messages": MESSAGES, "max_tokens": 200, "seed": 1, **fields}
    [choice] = client.chat.completions.create(**asked).choices
    return choice


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_schema(client: openai.OpenAI, temperature: float) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    choice = ask(client, response_format=form, temperature=temperature)
    value = json.loads(choice.message.content)
    assert choice.finish_reason == "stop" and set(value) == {"name", "age", "tags"}
    assert 0 <= value["age"] <= 150 and len(value["name"]) <= 12 and set(value["tags"]) <= {"a", "b"}


def test_a_stream_in_a_form(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    events = client.chat.completions.create(
        model="tiny-draft", messages=MESSAGES, max_tokens=200, response_format=form, stream=True
    )
    assert set(json.loads("".join(e.choices[0].delta.content or "" for e in events))) == set(
        PERSON["required"]
    )


def test_a_pattern_and_a_choice(client: openai.OpenAI) -> None:
    choice = ask(client, extra_body={"guided_regex": r"[a-c]{3}-\d{2,4}"})
    assert re.fullmatch(r"[a-c]{3}-\d{2,4}", choice.message.content)
    for field in ("guided_choice", "structured_outputs"):
        value: Any = ["red", 'green\n"x"', "blau"]
        body = {field: value if field == "guided_choice" else {"choice": value}}
        assert ask(client, extra_body=body).message.content in value


def test_any_object(client: openai.OpenAI) -> None:
    choice = ask(client, response_format={"type": "json_object"}, temperature=0, max_tokens=400)
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    assert choice.message.content.lstrip().startswith("{")


def test_the_same_with_and_without_company(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    alone = ask(client, response_format=form).message.content
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: ask(client, response_format=form).message.content, range(8)))
    assert set(found) == {alone}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "body,code",
    [
        ({"guided_json": deep(40)}, "schema_too_complex"),
        ({"guided_json": {"enum": [str(i) for i in range(3000)]}}, "schema_too_complex"),
        ({"guided_json": {"type": "string", "pattern": "a" * 2000}}, "schema_too_complex"),
        ({"guided_json": {"$ref": "http://evil.example/x"}}, "invalid_value"),
        ({"guided_json": {"type": "nothing"}}, "invalid_value"),
        ({"guided_json": {"type": "array", "uniqueItems": True}}, "invalid_value"),
        ({"guided_json": {"not": {"type": "string"}}}, "invalid_value"),
        ({"guided_json": {"type": "string", "format": "odd"}}, "invalid_value"),
        ({"guided_json": {"contains": {}, "x-guidance": {"lenient": True}}}, "invalid_value"),
        ({"guided_json": {"oneOf": [{"minimum": 1}, {"maximum": 2}]}}, "invalid_value"),
        ({"guided_json": "{"}, "invalid_value"),
        ({"guided_regex": "(a"}, "invalid_value"),
        ({"guided_regex": "a" * 2000}, "schema_too_complex"),
        ({"guided_choice": [""]}, "invalid_value"),
        ({"guided_grammar": "start: undefined_rule"}, "invalid_value"),
        ({"structured_outputs": {}}, "invalid_value"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "invalid_value"),
        ({"response_format": {"type": "yaml"}}, "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "invalid_value"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "invalid_value"),
        ({"guided_regex": "a", "ignore_eos": True}, "invalid_value"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_what_is_no_form(server: Server, body: dict[str, Any], code: str) -> None:
    with server.client() as client:
        answer = client.post("/v1/completions", json={"prompt": "a", **body})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == code and len(error["message"]) < 600 and "0x" not in error["message"]


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    ],
    ids=json.dumps,
)
def test_references_in_circles_harm_nobody(server: Server, schema: dict[str, Any]) -> None:
    with server.client() as client:
        body = {"prompt": "a", "max_tokens": 4, "guided_json": schema}
        assert client.post("/v1/completions", json=body).status_code in (200, 400)
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200


def test_the_checker_forgets_what_was_asked_least_recently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "_KNOWN", 2)
    asked: list[str] = []

    async def ask(grammar: Grammar, where: str) -> str:
        asked.append(grammar.text)
        return ""

    async def check() -> None:
        checker = grammars.Checker("", "", 0, ())
        monkeypatch.setattr(checker, "_ask", ask)
        for text in ("a", "b", "a", "c", "a", "b"):
            await checker.check(Grammar("regex", text), "guided_regex")

    asyncio.run(check())
    assert asked == ["a", "b", "c", "b"]


@pytest.mark.slow
def test_the_checker_compiles_with_the_engine_s_member() -> None:
    """What xgrammar needs fits in the memory that the process may take."""
    pytest.importorskip("xgrammar")

    async def check() -> None:
        checker = grammars.Checker(str(box.path("tiny-draft")), "xgrammar", 4096, (0,))
        try:
            await checker.check(Grammar("json_schema", json.dumps(PERSON)), "guided_json")
            with pytest.raises(ApiError, match="xgrammar does not enforce 'uniqueItems'"):
                await checker.check(
                    Grammar("json_schema", '{"type": "array", "uniqueItems": true}'), "guided_json"
                )
        finally:
            await checker.close()

    asyncio.run(check())


@pytest.mark.parametrize(
    "pattern", ["(a{1,2000}){1,2000}", "((a|b)*c){1,1000}(x{1,1000}y){1,1000}", "(.*a){30}b"]
)
def test_hard_patterns_harm_nobody(server: Server, pattern: str) -> None:
    with server.client() as client:
        answer = client.post(
            "/v1/completions", json={"prompt": "a", "max_tokens": 4, "guided_regex": pattern}
        )
        assert answer.status_code in (200, 400)
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200
