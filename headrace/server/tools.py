"""Tools that a client offers, in OpenAI's words: checked, shown to the model by its template, and its calls of them.

tool_choice none            the model is not shown them
            auto            it calls what it likes; a grammar keeps it to the schemas only where that was asked for
                            (a tool with strict=true, or parallel_tool_calls=false)
            required, NAME  a grammar leaves it no choice but to call, with arguments that satisfy the schema
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from headrace.errors import ConfigError, ModelError
from headrace.params import MAX_GRAMMAR_CHARS, Grammar
from headrace.server.errors import bad
from headrace.server.grammars import measure, too_complex
from headrace.text import tool_formats
from headrace.text.chat import ChatTemplate
from headrace.text.tokenizer import Tokenizer
from headrace.text.tool_formats import Format
from headrace.text.tool_grammar import Function, ToolGrammar
from headrace.text.tool_parser import Arguments, Begun, Content, Event, Parsed, ToolParser
from headrace.types import FinishReason

MAX_TOOLS = 128
MAX_CALLS = 128
"""Calls of one earlier message."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ALPHABET = string.ascii_letters + string.digits


class ToolFunction(msgspec.Struct, kw_only=True):
    """`tools[].function`."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def schema(self) -> dict[str, Any]:
        """Of the arguments."""
        return self.parameters or {"type": "object", "properties": {}}


class Tool(msgspec.Struct, kw_only=True):
    """`tools[]`."""

    type: str
    function: ToolFunction

    def shown(self) -> dict[str, Any]:
        """As templates expect it."""
        about = {"name": self.function.name, "description": self.function.description}
        about = {key: value for key, value in about.items() if value is not None}
        return {"type": "function", "function": {**about, "parameters": self.function.schema}}


class ChoiceFunction(msgspec.Struct, kw_only=True):
    """`tool_choice.function`."""

    name: str


class Choice(msgspec.Struct, kw_only=True):
    """`tool_choice`, if it names a function."""

    type: str
    function: ChoiceFunction


class Asking(Protocol):
    """Fields of a body about tools."""

    tools: list[Tool] | None
    tool_choice: str | Choice | None
    parallel_tool_calls: bool | None


@dataclass(frozen=True)
class Offer:
    """The tools of one request."""

    template: ChatTemplate
    form: Format
    shown: list[dict[str, Any]]
    """What the template gets."""
    schemas: dict[str, dict[str, Any]]
    """What may be called, with which arguments."""
    marks: frozenset[int]
    """Special tokens that the format of calls is made of."""
    grammar: Grammar | None
    """What the answer is kept to."""

    def parser(self) -> ToolParser:
        """For one answer."""
        return ToolParser(self.form, self.schemas)

    def call_id(self) -> str:
        """A new one."""
        if self.form.short_ids:
            return "".join(secrets.choice(_ALPHABET) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"


class Tools:
    """How one model is shown tools, and calls them."""

    def __init__(self, tokenizer: Tokenizer, parser: str = "") -> None:
        """parser: name of the format of calls; if empty, the template tells. Raises ConfigError."""
        self._template: ChatTemplate | None = None
        self._form: Format | None = tool_formats.named(parser) if parser else None
        # A prompt of our own making would be one that the model has never seen, and its answers in no known format:
        # without a template that shows tools, requests with tools are refused.
        self.facts = "none, the model has no chat template"
        try:
            template = ChatTemplate.load(tokenizer.folder, tools=True)
        except ModelError:
            return
        if "tools" not in template.variables:
            self.facts = "none, the chat template does not show tools to the model"
            if parser:
                raise ConfigError(f"--tool-call-parser {parser}: {self.facts}")
            return
        self._template = template
        self._form = self._form or tool_formats.of_template(template.source)
        if self._form is None:
            self.facts = "none, the chat template is of no known family: name one with --tool-call-parser"
            return
        self.facts = self._form.name + ("" if parser else ", as the chat template tells")
        literals = self._form.literals
        special = {tokenizer.bytes_of(token).decode("utf-8", "replace"): token for token in tokenizer.special}
        self._special = {text: token for text, token in special.items() if text and text in literals}
        self._grammar = ToolGrammar(self._form, self._special)

    def offer(self, body: Asking) -> Offer | None:
        """What a body offers the model; None if that is nothing. Raises ApiError."""
        tools = _checked(body.tools or [])
        choice = _choice(body.tool_choice, [tool.function.name for tool in tools])
        if not tools or choice == "none":
            return None
        if self._template is None or self._form is None:
            raise bad(f"tools: this model cannot be offered any ({self.facts})", "tools")
        named = [
            tool
            for tool in tools
            if isinstance(choice, Choice) and tool.function.name == choice.function.name
        ]
        callable_ = named or tools
        return Offer(
            template=self._template,
            form=self._form,
            shown=[tool.shown() for tool in tools],
            schemas={tool.function.name: tool.function.schema for tool in callable_},
            marks=frozenset(self._special.values()),
            grammar=self._kept_to(callable_, choice, one=bool(named) or body.parallel_tool_calls is False),
        )

    def _kept_to(self, tools: Sequence[Tool], choice: str | Choice, *, one: bool) -> Grammar | None:
        functions = [Function(tool.function.name, tool.function.schema) for tool in tools]
        if choice == "auto":
            if not one and not any(tool.function.strict for tool in tools):
                return None
            text = self._grammar.text_or_calls(functions, one=one)
        else:
            text = self._grammar.only_calls(functions, one=one)
        if len(text) > MAX_GRAMMAR_CHARS:
            raise too_complex(
                f"tools: their schemas make a grammar of {len(text)} characters; at most {MAX_GRAMMAR_CHARS}",
                "tools",
            )
        return Grammar("lark", text)

    def history(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Earlier calls as templates expect them: their arguments as an object, where OpenAI has a text.

        Raises ApiError.
        """
        as_text = self._form is not None and self._form.text_arguments
        return [
            {**message, "tool_calls": _calls(f"messages[{i}].tool_calls", message["tool_calls"], as_text)}
            if isinstance(message, dict) and message.get("tool_calls")
            else message
            for i, message in enumerate(messages)
        ]


def _calls(where: str, calls: Any, as_text: bool) -> list[dict[str, Any]]:
    if not isinstance(calls, list) or len(calls) > MAX_CALLS:
        raise bad(f"{where} must be a list of at most {MAX_CALLS} calls", "messages")
    found = []
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad(f'{where}[{i}] must be {{"id", "type": "function", "function": {{...}}}}', "messages")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = msgspec.json.decode(arguments)
            except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
                raise bad(f"{where}[{i}].function.arguments is not JSON: {error}", "messages") from None
        if not isinstance(arguments, dict):
            raise bad(f"{where}[{i}].function.arguments must be an object", "messages")
        written = json.dumps(arguments, ensure_ascii=False) if as_text else arguments
        found.append({**call, "function": {**function, "arguments": written}})
    return found


def _checked(tools: list[Tool]) -> list[Tool]:
    """Raises ApiError."""
    if len(tools) > MAX_TOOLS:
        raise bad(f"{len(tools)} tools: at most {MAX_TOOLS}", "tools")
    names = set()
    for i, tool in enumerate(tools):
        where, function = f"tools[{i}]", tool.function
        if tool.type != "function":
            raise bad(f"{where}.type={tool.type[:40]!r}: only functions can be offered", "tools")
        if not _NAME.fullmatch(function.name):
            raise bad(f"{where}.function.name must be 1 to 64 of A-Z a-z 0-9 _ -", "tools")
        if function.name in names:
            raise bad(f"{where}.function.name={function.name!r} is the name of an earlier tool too", "tools")
        names.add(function.name)
        if function.schema.get("type") != "object":
            raise bad(f'{where}.function.parameters must be a schema of {{"type": "object"}}', "tools")
        measure(function.schema, f"{where}.function.parameters")
        properties, required = function.schema.get("properties", {}), function.schema.get("required", [])
        if not isinstance(properties, dict) or not _are_texts(required):
            raise bad(
                f"{where}.function.parameters: properties must be an object, required a list of names",
                "tools",
            )
    return tools


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _choice(choice: str | Choice | None, names: Sequence[str]) -> str | Choice:
    """Raises ApiError."""
    if choice is None:
        return "auto" if names else "none"
    if isinstance(choice, Choice):
        if choice.type != "function" or choice.function.name not in names:
            raise bad(
                f"tool_choice names {choice.function.name[:64]!r}, which is not among tools", "tool_choice"
            )
    elif choice not in ("none", "auto", "required"):
        raise bad(
            f"tool_choice={choice[:40]!r}: known: none, auto, required, "
            '{"type": "function", "function": {"name": ...}}',
            "tool_choice",
        )
    elif choice != "none" and not names:
        raise bad(f"tool_choice={choice!r} needs tools", "tool_choice")
    return choice


# ---- answers ----


def message_of(
    offer: Offer | None, text: str, reason: FinishReason | None
) -> tuple[dict[str, Any], str | None]:
    """A whole answer as fields of OpenAI's message, and why it ended."""
    if offer is None:
        return {"content": text}, reason
    parser, parsed = offer.parser(), Parsed()
    parsed.take(parser.feed(text))
    parsed.take(parser.finish(cut=reason == "length"))
    fields: dict[str, Any] = {"content": parsed.content}
    if parsed.calls:
        fields["content"] = parsed.content or None
        fields["tool_calls"] = [
            {
                "id": offer.call_id(),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in parsed.calls
        ]
    return fields, _ending(parsed, reason)


def _ending(parsed: Parsed, reason: FinishReason | None) -> str | None:
    return "tool_calls" if reason == "stop" and parsed.asks else reason


class Deltas:
    """One answer piece by piece, as OpenAI's deltas."""

    def __init__(self, offer: Offer | None) -> None:
        self._offer = offer
        self._parser = offer.parser() if offer else None
        self._parsed = Parsed()
        self.finish_reason: str | None = None

    def take(self, text: str, reason: FinishReason | None) -> list[dict[str, Any]]:
        """What the next text, and the end of it, adds; at least one delta."""
        if self._parser is None:
            self.finish_reason = reason
            return [{"content": text}]
        events = self._parser.feed(text)
        if reason is not None:
            events += self._parser.finish(cut=reason == "length")
        self._parsed.take(events)
        self.finish_reason = _ending(self._parsed, reason)
        return list(self._written(events)) or [{}]

    def _written(self, events: Sequence[Event]) -> Iterator[dict[str, Any]]:
        assert self._offer is not None
        for event in events:
            match event:
                case Content(text):
                    yield {"content": text}
                case Begun(index, name):
                    function = {"name": name, "arguments": ""}
                    call = {
                        "index": index,
                        "id": self._offer.call_id(),
                        "type": "function",
                        "function": function,
                    }
                    yield {"tool_calls": [call]}
                case Arguments(index, text):
                    yield {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
