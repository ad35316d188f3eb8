"""Grammars of answers that call tools, in a family's format, as llguidance reads them: Lark with JSON schemas inside.

only calls      start: OPEN call (BETWEEN call)* CLOSE
text or calls   start: (TEXT up to a mark, what follows the mark)* TEXT     free until the model writes the mark
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.errors import ConfigError
from headrace.text.tool_formats import Format
from headrace.text.tool_values import kinds_of

MAX_CALLS = 16
"""Most calls in one run of them: a small model may never stop by itself."""
MAX_BLANKS = 16
"""Most blanks between two parts of JSON, for the same reason."""
_COMBINED = frozenset({"allOf", "anyOf", "oneOf", "$ref", "if", "patternProperties", "unevaluatedProperties"})
_LIMITS = frozenset({"pattern", "format", "minLength"})
_KEYWORD = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Function:
    """A tool that may be called."""

    name: str
    """Of letters, digits, _ and -."""
    schema: Mapping[str, Any]
    """Of its arguments, which are an object."""


class ToolGrammar:
    """Writes the grammars of one format for one vocabulary."""

    def __init__(self, form: Format, special: Mapping[str, int]) -> None:
        """special: ids of the special tokens that the format's texts spell; ordinary tokens cannot spell them."""
        self._form, self._special = form, special
        spelled = [re.escape(text) for text in sorted(special, key=len, reverse=True)]
        self._pieces = re.compile("(" + "|".join([*spelled, r"\s+"]) + ")")

    def only_calls(self, functions: Sequence[Function], *, one: bool) -> str:
        """An answer is calls and nothing else; exactly one call if `one`. Raises ConfigError."""
        return self._write(f"start: {self._run(one)}", functions)

    def text_or_calls(self, functions: Sequence[Function], *, one: bool) -> str:
        """An answer is text, with calls where the format has them; if `one`, at most one, and nothing after it."""
        form = self._form
        if not form.anywhere:
            first = re.escape("".join(text[0] for text in form.triggers if text not in self._special))
            text = rf"TEXT: /\s*([^\s{first}](.|\n)*)?/"
            return self._write(f"start: run | TEXT\nrun: {self._run(one)}\n{text}", functions)
        [mark] = form.triggers
        if form.open:
            rest = self._run(one, skip=len(mark))
        else:  # every call has its own mark
            rest = f"{self._text(form.before[len(mark) :])} body {self._text(form.after)}"
        rules = ["start: run | TEXT" if one else "start: run* TEXT", r"TEXT: /(.|\n)*/"]
        if mark in self._special:
            rules.append(f"run: TEXT {self._text(mark)} {rest}")
        else:
            rules += [f"run: mark {rest}", f"mark[lazy]: TEXT {self._text(mark)}"]
        return self._write("\n".join(rules), functions)

    def _run(self, one: bool, skip: int = 0) -> str:
        """OPEN call (BETWEEN call)* CLOSE. `skip`: so many characters of OPEN are there already."""
        form = self._form
        more = "" if one else f"({self._text(form.between)} call){{0,{MAX_CALLS - 1}}}"
        open_ = self._text(form.open[skip:])
        return f"{f'({open_})?' if form.bare else open_} call {more} {self._text(form.close)}"

    def _write(self, rules: str, functions: Sequence[Function]) -> str:
        form = self._form
        lines = ["%llguidance {}", rules]
        if "call" in re.findall(r"\w+", rules):
            lines.append(f"call: {self._text(form.before)} body {self._text(form.after)}")
        lines.append("body: " + " | ".join(f"f{i}" for i in range(len(functions))))
        for i, function in enumerate(functions):
            write = {"python": self._python, "tagged": self._tagged}.get(form.body, self._body)
            lines += write(i, function)
        return "\n".join(lines) + "\n"

    def _body(self, i: int, function: Function) -> Iterator[str]:
        if self._form.body == "object":
            front = json.dumps(f'{{"name": "{function.name}", "{self._form.keys[0]}": ')
            yield f'f{i}: {front} a{i} "}}"'
        else:
            yield f'f{i}: "{function.name}" {self._text(self._form.middle)} a{i}'
        schema = dict(function.schema)
        # What a function does not declare it does not take, unless its schema says so.
        if "properties" in schema and not _COMBINED & set(schema):
            schema.setdefault("additionalProperties", False)
        yield f"a{i}: {_json(schema)}"

    def _python(self, i: int, function: Function) -> Iterator[str]:
        """f(a=1, c=2): required arguments, and any of the others, in the order of the schema."""
        properties = _properties(function)
        yield f'f{i}: "{function.name}(" f{i}_first0 ")"'
        for k, (name, value, required) in enumerate(properties):
            if not _KEYWORD.fullmatch(name):
                raise ConfigError(
                    f"{function.name}: an argument called {name[:80]!r} cannot be written as NAME=VALUE"
                )
            for place, comma in (("first", ""), ("rest", ", ")):
                without = "" if required else f" | f{i}_{place}{k + 1}"
                yield f'f{i}_{place}{k}: "{comma}{name}=" v{i}_{k} f{i}_rest{k + 1}{without}'
            yield f"v{i}_{k}: {_json(value)}"
        yield f'f{i}_first{len(properties)}: ""'
        yield f'f{i}_rest{len(properties)}: ""'

    def _tagged(self, i: int, function: Function) -> Iterator[str]:
        """Arguments between marks, in the order of the schema."""
        form, properties = self._form, _properties(function)
        yield f'f{i}: "{function.name}" {self._text(form.middle)} f{i}_0'
        for k, (name, value, required) in enumerate(properties):
            if not _KEYWORD.fullmatch(name):
                raise ConfigError(
                    f"{function.name}: an argument called {name[:80]!r} cannot be written between marks"
                )
            without = "" if required else f" | f{i}_{k + 1}"
            front = f'{self._text(form.key[0])} "{name}" {self._text(form.key[1] + form.value[0])}'
            yield f'f{i}_{k}: {front} v{i}_{k} "\\n"? f{i}_{k + 1}{without}'
            yield from self._value(f"v{i}_{k}", value, f"{function.name}: the argument {name}")
        yield f'f{i}_{len(properties)}: ""'

    def _value(self, rule: str, schema: Any, what: str) -> Iterator[str]:
        """What an argument may be, with the mark behind it: a string as it stands, anything else as JSON."""
        close = self._text(self._form.value[1])
        if "string" not in kinds_of(schema):
            yield f'{rule}: "\\n"? {rule}_json "\\n"? {close}'
            yield f"{rule}_json: {_json(schema)}"
        elif "enum" in schema or "const" in schema:
            texts = schema["enum"] if "enum" in schema else [schema["const"]]
            written = (text if isinstance(text, str) else json.dumps(text) for text in texts)
            quoted = " | ".join(json.dumps(text, ensure_ascii=False) for text in written)
            yield f'{rule}: "\\n"? ({quoted}) "\\n"? {close}'
        elif found := sorted(_LIMITS & set(schema)):
            raise ConfigError(
                f"{what} is a string with {found[0]}, which cannot be kept to in the format {self._form.name}"
            )
        else:
            most = schema.get("maxLength", "")
            yield f"{rule}{'' if self._form.value[1] in self._special else '[lazy]'}: {rule.upper()} {close}"
            yield rf"{rule.upper()}: /\n?(.|\n){{0,{most}}}\n?/"  # a line break at either end is the mark's

    def _text(self, text: str) -> str:
        """A text of the format: special tokens by id, blanks as they please."""
        pieces = []
        for piece in filter(None, self._pieces.split(text)):
            if piece in self._special:
                pieces.append(f"<[{self._special[piece]}]>")
            else:
                pieces.append(json.dumps(piece, ensure_ascii=False) + ("?" if piece.isspace() else ""))
        return " ".join(pieces)


def _properties(function: Function) -> list[tuple[str, Any, bool]]:
    """Its arguments: name, schema with the definitions that it may refer to, and whether it is required."""
    schema = function.schema
    required = list(schema.get("required", ()))
    properties = {**schema.get("properties", {}), **dict.fromkeys(required, True)}
    properties |= schema.get("properties", {})
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return [
        (name, {**value, **definitions} if isinstance(value, dict) else value, name in required)
        for name, value in properties.items()
    ]


def _json(schema: Any) -> str:
    if isinstance(schema, dict):
        schema = {**schema, "x-guidance": {"whitespace_pattern": rf"[ \t\r\n]{{0,{MAX_BLANKS}}}"}}
    return "%json " + json.dumps(schema, ensure_ascii=False)
