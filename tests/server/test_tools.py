"""Tools on /v1/chat/completions, asked by OpenAI's own client; the server runs as a user would start it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from headrace.errors import ConfigError
from headrace.params import SamplingParams
from headrace.server.tools import Deltas, Offer, Tool, ToolFunction, Tools, message_of
from headrace.text.reply import Reply
from headrace.text.tokenizer import Tokenizer
from headrace.types import Delta
from tests.server import hermes
from tests.server.running import Server, serving

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "maxLength": 12},
                "unit": {"enum": ["C", "F"]},
                "days": {"$ref": "#/$defs/days"},
            },
            "required": ["place", "unit", "days"],
            "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
        },
    },
}
NOTHING: Any = {"type": "function", "function": {"name": "do-nothing"}}
MESSAGES: Any = [{"role": "user", "content": "Weather in Graz?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hermes.make(tmp_path_factory.mktemp("hermes") / "tools")


@pytest.fixture(scope="module")
def tooled(folder: Path) -> Iterator[Server]:
    with serving("--model", str(folder), "--threads", "1") as running:
        yield running


@pytest.fixture
def client(tooled: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tooled.url}/v1", api_key="none", max_retries=0) as client:
        yield client


class Asked:
    """A body that offers do-nothing."""

    def __init__(self, choice: str | None = None) -> None:
        self.tools: list[Tool] | None = [Tool(type="function", function=ToolFunction(name="do-nothing"))]
        self.tool_choice: Any = choice
        self.parallel_tool_calls: bool | None = None


def asked(**fields: Any) -> dict[str, Any]:
    body = {"model": "tools", "messages": MESSAGES, "tools": [WEATHER, NOTHING], "max_tokens": 200, "seed": 1}
    return {**body, "parallel_tool_calls": False, **fields}


def check(name: str, arguments: str) -> None:
    value = json.loads(arguments)
    if name == "do-nothing":
        assert value == {}
        return
    assert name == "get_weather" and set(value) == {"place", "unit", "days"}
    assert len(value["place"]) <= 12 and value["unit"] in ("C", "F") and 1 <= value["days"] <= 9


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_required(client: openai.OpenAI, temperature: float) -> None:
    for seed in range(3):
        [choice] = client.chat.completions.create(
            **asked(tool_choice="required", temperature=temperature, seed=seed)
        ).choices
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        [call] = choice.message.tool_calls
        assert call.type == "function" and call.id.startswith("call_")
        check(call.function.name, call.function.arguments)


@pytest.mark.parametrize("name", ["get_weather", "do-nothing"])
def test_a_named_function(client: openai.OpenAI, name: str) -> None:
    choice = {"type": "function", "function": {"name": name}}
    [answer] = client.chat.completions.create(**asked(tool_choice=choice)).choices
    [call] = answer.message.tool_calls
    assert call.function.name == name and answer.finish_reason == "tool_calls"
    check(name, call.function.arguments)


def accumulated(events: list[Any]) -> dict[int, dict[int, dict[str, Any]]]:
    """choice -> index -> call, as clients put streams together."""
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for event in events:
        for choice in event.choices:
            for delta in choice.delta.tool_calls or []:
                calls = found.setdefault(choice.index, {})
                if delta.index not in calls:
                    assert delta.id and delta.type == "function" and delta.function.arguments == ""
                    calls[delta.index] = {"name": delta.function.name, "arguments": "", "pieces": 0}
                else:
                    assert delta.id is None and delta.function.name is None
                    calls[delta.index]["arguments"] += delta.function.arguments
                    calls[delta.index]["pieces"] += 1
    return found


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    body = asked(tool_choice="required", n=3, parallel_tool_calls=True, logprobs=True, top_logprobs=1)
    whole = client.chat.completions.create(**body)
    events = list(client.chat.completions.create(**body, stream=True))
    streamed = accumulated(events)
    ends = {c.index: c.finish_reason for e in events for c in e.choices if c.finish_reason}
    logprobs: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    for choice in (choice for event in events for choice in event.choices if choice.logprobs):
        logprobs[choice.index] += choice.logprobs.content
    assert len(whole.choices) == 3 and not any(c.delta.content for e in events for c in e.choices)
    for choice in whole.choices:
        got = [(call["name"], call["arguments"]) for call in streamed[choice.index].values()]
        assert got == [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]
        assert ends[choice.index] == choice.finish_reason
        assert logprobs[choice.index] == choice.logprobs.content
        if choice.finish_reason == "tool_calls":
            for name, arguments in got:
                check(name, arguments)
    assert max(call["pieces"] for calls in streamed.values() for call in calls.values()) > 3


def test_asynchronous_streams(tooled: Server) -> None:
    async def ask_all() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{tooled.url}/v1", api_key="none") as client:

            async def one(seed: int) -> list[Any]:
                body = asked(tool_choice="required", seed=seed, stream=True)
                return [event async for event in await client.chat.completions.create(**body)]

            return await asyncio.gather(*[one(seed) for seed in range(8)])

    for events in asyncio.run(ask_all()):
        [[call]] = [list(calls.values()) for calls in accumulated(events).values()]
        check(call["name"], call["arguments"])


def test_a_call_that_the_limit_cuts(client: openai.OpenAI) -> None:
    body = asked(tool_choice={"type": "function", "function": {"name": "get_weather"}}, max_tokens=30)
    [choice] = client.chat.completions.create(**body).choices
    assert choice.finish_reason == "length"
    [call] = choice.message.tool_calls
    assert call.function.name == "get_weather" and call.function.arguments.startswith("{")
    [[streamed]] = [
        list(calls.values())
        for calls in accumulated(list(client.chat.completions.create(**body, stream=True))).values()
    ]
    assert streamed["arguments"] == call.function.arguments


def test_auto_and_none(client: openai.OpenAI) -> None:
    """The small model does not call by itself: auto is text as ever, and none does not even show the tools."""
    free = asked(max_tokens=8, temperature=0, parallel_tool_calls=True)
    auto = client.chat.completions.create(**free)
    assert auto.choices[0].message.tool_calls is None and auto.choices[0].message.content
    none = client.chat.completions.create(**free, tool_choice="none")
    plain = client.chat.completions.create(
        **{**free, "tools": openai.omit, "parallel_tool_calls": openai.omit}
    )
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens < auto.usage.prompt_tokens
    assert none.choices[0].message.content == plain.choices[0].message.content


def test_strict_tools_leave_text_free(client: openai.OpenAI) -> None:
    free = asked(max_tokens=8, temperature=0, parallel_tool_calls=True)
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    [want] = client.chat.completions.create(**free).choices
    [got] = client.chat.completions.create(**{**free, "tools": [strict, NOTHING]}).choices
    assert got.message.content == want.message.content


def test_a_conversation_with_calls(client: openai.OpenAI, tooled: Server) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "do-nothing", "arguments": '{"a": "<|end|>"}'},
    }
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sunny"}]},
    ]
    [choice] = client.chat.completions.create(**asked(messages=messages, max_tokens=4)).choices
    assert choice.finish_reason in ("length", "stop")
    with tooled.client() as http:
        ids = http.post("/tokenize", json={"messages": messages}).json()["tokens"]
        text = http.post("/detokenize", json={"tokens": ids}).json()["prompt"]
    assert '{"name": "do-nothing", "arguments": {"a": "<|end|>"}}' in text and "sunny" in text
    end = Tokenizer(hermes.box.path("tiny-draft")).id_of("<|end|>")
    assert ids.count(end) == 3


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [NOTHING] * 2}, "tools", "earlier tool"),
    (
        {"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]},
        "tools",
        "at most 128",
    ),
    ({"tools": [{"type": "browser", "function": {"name": "f"}}]}, "tools", "only functions"),
    ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools", "A-Z a-z"),
    ({"tools": [{"type": "function"}]}, "function", "required"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
        "tools",
        "object",
    ),
    (
        {
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "f", "parameters": {"type": "object", "required": 1}},
                }
            ]
        },
        "tools",
        "list of names",
    ),
    (
        {
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "f", "parameters": {"type": "object", "x": [[]] * 3000}},
                }
            ]
        },
        "tools[0].function.parameters",
        "parts",
    ),
    (
        {
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "f", "parameters": {"type": "object", "description": "d" * 70_000}},
                }
            ],
            "tool_choice": "required",
        },
        "tools",
        "characters",
    ),
    (
        {
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "f",
                        "parameters": {"type": "object", "properties": {"a": {"type": "x"}}},
                    },
                }
            ],
            "tool_choice": "required",
        },
        "tools",
        "",
    ),
    ({"tools": [NOTHING], "tool_choice": "never"}, "tool_choice", "known: none"),
    (
        {"tools": [NOTHING], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice",
        "not among",
    ),
    ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"tools": [NOTHING], "response_format": {"type": "json_object"}}, "response_format", "give one"),
    ({"tools": [NOTHING], "tool_choice": "required", "ignore_eos": True}, None, "ignore_eos"),  # type: ignore[list-item]
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        "messages",
        "not JSON",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}]},
        "messages",
        "an object",
    ),
    ({"messages": [{"role": "assistant", "tool_calls": {"a": 1}}]}, "messages", "list"),
    ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "messages", "function"),
]


@pytest.mark.parametrize("body,param,text", BAD, ids=lambda value: json.dumps(value)[:60])
def test_what_is_refused(tooled: Server, body: dict[str, Any], param: str, text: str) -> None:
    with tooled.client() as http:
        answer = http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1, **body})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert param is None or error["param"] == param
    assert text in error["message"] and len(error["message"]) < 600


def test_deep_messages_are_the_clients_fault(tooled: Server) -> None:
    deep: Any = "x"
    for _ in range(800):
        deep = [deep]
    with tooled.client() as http:
        answer = http.post("/v1/chat/completions", json={"messages": [{**MESSAGES[0], "more": deep}]})
    assert answer.status_code == 400 and "levels deep" in answer.json()["error"]["message"]


def test_a_model_that_is_not_shown_tools(server: Server) -> None:
    with server.client() as http:
        body = {"messages": MESSAGES, "tools": [NOTHING]}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400 and "does not show tools" in answer.json()["error"]["message"]
        answer = http.post("/v1/chat/completions", json={**body, "tool_choice": "none", "max_tokens": 1})
        assert answer.status_code == 200
    assert "tool calls: none" in server.log.read_text()


def test_arguments_between_marks(folder: Path) -> None:
    """What a grammar leaves is a call that satisfies the schema, whole or streamed."""
    with serving("--model", str(folder), "--threads", "1", "--tool-call-parser", "qwen3_coder") as server:
        assert "tool calls: qwen3_coder" in server.log.read_text()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            asked: Any = {"messages": MESSAGES, "tools": [WEATHER], "tool_choice": "required", "seed": 3}
            asked |= {"model": "tools", "max_tokens": 300, "parallel_tool_calls": False}
            message = client.chat.completions.create(**asked).choices[0].message
            [call] = message.tool_calls
            told = ""
            for chunk in client.chat.completions.create(**asked, stream=True):
                for delta in chunk.choices[0].delta.tool_calls or []:
                    told += delta.function.arguments or ""
    jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])
    assert (call.function.name, message.content, told) == ("get_weather", None, call.function.arguments)


def test_how_the_format_is_found(folder: Path, tooled: Server, tmp_path: Path) -> None:
    assert "tool calls: hermes, as the chat template tells" in tooled.log.read_text()
    assert Tools(Tokenizer(folder), "mistral").facts == "mistral"
    with pytest.raises(ConfigError, match="did you mean 'hermes'"):
        Tools(Tokenizer(folder), "hermees")
    with pytest.raises(ConfigError, match="does not show tools"):
        Tools(Tokenizer(hermes.box.path("tiny-draft")), "hermes")
    strange = hermes.make(tmp_path / "strange", "{{ tools }}{{ messages[0].content }}")
    assert "--tool-call-parser" in Tools(Tokenizer(strange)).facts


def test_marks_that_are_special_tokens(tmp_path: Path) -> None:
    """They are text to whoever looks for calls, and a grammar names them by id."""
    made = hermes.make(tmp_path / "special", hermes.TEMPLATE.replace("<|system|>", ""))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        file = made / name
        file.write_text(file.read_text().replace("<|system|>", "<tool_call>"))
    tokenizer = Tokenizer(made)
    mark = tokenizer.id_of("<tool_call>")
    offer = Tools(tokenizer).offer(Asked("required"))
    assert offer is not None and offer.marks == {mark}
    assert offer.grammar is not None and f"<[{mark}]>" in offer.grammar.text
    call = '{"name": "do-nothing", "arguments": {}}'
    tokens = (mark, *tokenizer.encode(call, add_special=False), tokenizer.eos)
    for shown in (offer.marks, frozenset()):
        reply = Reply(tokenizer, [1], SamplingParams(), prompt=None, at=0.0, shown=shown)
        chunk = reply.take(Delta("a", 0, 0, tokens, finish_reason="stop"), 1.0)
        assert chunk is not None
        fields, _ = message_of(offer, chunk.text, "stop")
        assert ("tool_calls" in fields) == bool(shown)


# ---- what a model says freely, without one ----

SAID = 'Let me see.\n<tool_call>\n{"name": "do-nothing", "arguments": {}}\n</tool_call>'


@pytest.fixture(scope="module")
def offer(folder: Path) -> Offer:
    made = Tools(Tokenizer(folder)).offer(Asked())
    assert made is not None and made.grammar is None
    return made


def test_a_free_call(offer: Offer) -> None:
    fields, reason = message_of(offer, SAID, "stop")
    [call] = fields["tool_calls"]
    assert call["function"] == {"name": "do-nothing", "arguments": "{}"} and reason == "tool_calls"
    assert fields["content"] == "Let me see."


def test_no_call_is_content(offer: Offer) -> None:
    for text in ("Hello", SAID[:-20], SAID.replace("do-", "un"), SAID.replace("{}", "{3}"), "<tool_call>"):
        assert message_of(offer, text, "stop") == ({"content": text}, "stop"), text
        deltas = Deltas(offer)
        pieces = [delta for char in text for delta in deltas.take(char, None)] + deltas.take("", "stop")
        assert "".join(piece.get("content", "") for piece in pieces) == text
        assert deltas.finish_reason == "stop"


def test_free_deltas(offer: Offer) -> None:
    deltas = Deltas(offer)
    pieces = [delta for char in SAID for delta in deltas.take(char, None)] + deltas.take("", "stop")
    calls = [call for piece in pieces for call in piece.get("tool_calls", [])]
    assert calls[0]["function"] == {"name": "do-nothing", "arguments": ""} and calls[0]["type"] == "function"
    assert [call["function"]["arguments"] for call in calls[1:]] == ["{", "}"]
    assert {call["index"] for call in calls} == {0} and deltas.finish_reason == "tool_calls"
    assert "".join(piece.get("content", "") for piece in pieces) == "Let me see."
