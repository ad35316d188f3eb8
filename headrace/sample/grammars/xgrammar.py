"""Splits the vocabulary per parser state into tokens that always fit, never fit, and few that need the parser's stack.

Paper   https://arxiv.org/abs/2411.15100 (XGrammar)
Idea    Most tokens can be judged by the grammar rule at hand alone: once, when the grammar is compiled. At each step
        only the others run through the parser, in sorted order, so that common beginnings are parsed once.
Trades  Compiling takes from milliseconds to seconds and keeps tables, against masks that cost next to nothing.
Differs The library does the work. It passes over what it cannot enforce in a schema, with a line on stderr; here such a
        schema is refused. Where the text leaves no choice, its usual tokens are the only ones allowed.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy

from headrace.errors import ConfigError
from headrace.params import Grammar
from headrace.sample.ending import Ending
from headrace.sample.vocabulary import Vocabulary
from headrace.slots import Card

_CACHE_BYTES = 64 << 20
_GRAMMAR_BYTES = 256 << 20
_OF_TYPE = {
    "object": "properties required additionalProperties patternProperties minProperties maxProperties",
    "array": "items prefixItems minItems maxItems",
    "string": "minLength maxLength pattern format",
    "integer": "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf",
    "number": "minimum maximum exclusiveMinimum exclusiveMaximum",
}
"""Keywords that the library enforces beside a `type`."""
_FORMATS = set("date time date-time duration email hostname ipv6 uuid uri".split())
_ALONE = ("$ref", "anyOf", "allOf", "enum", "const")
"""Keywords beside which it passes over others."""
_SAYS_NOTHING = set(
    "title description default examples deprecated readOnly writeOnly $schema $id $comment $defs definitions".split()
)
_SCHEMAS = {"additionalProperties", "items"}  # keywords that hold a schema, a list of them, or some by name
_LISTS = {"prefixItems", "anyOf", "allOf"}
_TABLES = {"properties", "patternProperties", "$defs", "definitions"}


@dataclass(frozen=True, kw_only=True)
class XGrammar:
    """Grammars by xgrammar, an extra: pip install headrace[xgrammar]."""

    card: ClassVar[Card] = Card(slot="grammar", exact="bits", paper="https://arxiv.org/abs/2411.15100")
    whitespace: int = 16
    """Most spaces and line breaks between two parts of JSON: without a limit a small model may never stop with them."""

    def __post_init__(self) -> None:
        if not 0 <= self.whitespace <= 1000:
            raise ValueError(f"whitespace={self.whitespace} must be between 0 and 1000")
        if importlib.util.find_spec("xgrammar") is None:
            raise ConfigError(
                "--grammar xgrammar needs a package that is not installed: pip install headrace[xgrammar], "
                "or use --grammar llguidance"
            )

    def start(self, vocabulary: Vocabulary) -> _Compiler:
        return _Compiler(vocabulary, self.whitespace)


class _Compiler:
    def __init__(self, vocabulary: Vocabulary, whitespace: int) -> None:
        import xgrammar

        self._lib, self._vocabulary, self._whitespace = xgrammar, vocabulary, whitespace
        texts = [b"" if i in vocabulary.special else data for i, data in enumerate(vocabulary.tokens)]
        info = xgrammar.TokenizerInfo(texts, vocab_size=vocabulary.size, stop_token_ids=list(vocabulary.eos))
        self._inner = xgrammar.GrammarCompiler(info, max_threads=1, cache_limit_bytes=_CACHE_BYTES)

    def compile(self, grammar: Grammar) -> _Matcher:
        try:
            made = self._compiled(grammar)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"{grammar.kind}: {_what(error)}") from None
        if made.memory_size_bytes > _GRAMMAR_BYTES:
            raise ConfigError(f"{grammar.kind}: it takes more than {_GRAMMAR_BYTES >> 20} MiB when compiled")
        return _Matcher(self._lib.GrammarMatcher(made), self._vocabulary)

    def _compiled(self, grammar: Grammar) -> Any:
        match grammar.kind:
            case "json_object":
                return self._json('{"type": "object"}')
            case "json_schema":
                for schema in _schemas(json.loads(grammar.text)):
                    why = _misfit(schema)
                    if why:
                        raise ValueError(f"xgrammar does not enforce {why}; --grammar llguidance may")
                    if "pattern" in schema:  # of which, in a schema, parts would be passed over
                        self._lib.Grammar.from_regex(schema["pattern"])
                return self._json(grammar.text)
            case "regex":
                return self._inner.compile_regex(grammar.text)
            case "choice":
                choices = " | ".join(map(_quoted, json.loads(grammar.text)))
                return self._inner.compile_grammar(f"root ::= {choices}")
            case "lark":
                return self._inner.compile_lark(grammar.text)

    def _json(self, schema: str) -> Any:
        if self._whitespace == 0:
            return self._inner.compile_json_schema(
                schema, strict_mode=False, any_whitespace=False, separators=(",", ":")
            )
        return self._inner.compile_json_schema(schema, strict_mode=False, max_whitespace_cnt=self._whitespace)


class _Matcher(Ending):
    def __init__(self, inner: Any, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        self._inner = inner

    def _mask(self) -> bytes:
        forced = self._forced()
        if forced:
            return self._vocabulary.mask(forced[0])
        size = self._vocabulary.size
        bits = numpy.full((1, -(-size // 32)), -1, dtype=numpy.int32)
        self._inner.fill_next_token_bitmask(bits)
        if size % 32:  # the last word is filled up with ones
            bits[0, -1] &= (1 << size % 32) - 1
        return bits.tobytes()

    def _forced(self) -> tuple[int, ...]:
        try:
            text = self._inner.find_jump_forward_string().encode()
        except UnicodeDecodeError as error:  # it begins or ends within a character
            text = error.object
        return self._vocabulary.usual(text)

    def _take(self, token: int) -> None:
        accepted = self._inner.accept_token(token)
        assert accepted, "a token that the mask does not allow"

    def _undo(self, count: int) -> None:
        self._inner.rollback(count)

    def _twin(self) -> _Matcher:
        return _Matcher(self._inner.fork(), self._vocabulary)


def _misfit(schema: dict[str, Any]) -> str:
    """What the library would pass over; empty if nothing."""
    keys = set(schema) - _SAYS_NOTHING
    types = schema.get("type", ())
    types = {types} if isinstance(types, str) else set(types)
    alone = [key for key in _ALONE if key in keys]
    if alone:
        rest = keys - {alone[0]} - ({"type"} if alone[0] == "enum" else set())
        if rest:
            return f"{min(rest)!r} beside {alone[0]!r}"
        if types and not all(_TYPES.get(type(value)) in types for value in schema["enum"]):
            return "an enum of values that are not of its type"
        if len(schema.get("allOf", ())) > 1 or not str(schema.get("$ref", "#/")).startswith("#/"):
            return f"such a {alone[0]!r}"
        return ""
    known = {key for name in types for key in _OF_TYPE.get(name, "").split()}
    if keys - known - {"type"}:
        return f"{min(keys - known - {'type'})!r}" + ("" if types else " without a type")
    if not set(schema.get("required", ())) <= set(schema.get("properties", ())):
        return "'required' of what is not in 'properties'"
    if schema.get("format", "date") not in _FORMATS:
        return f"format {schema['format']!r}"
    for one, others in _APART.items():
        if one in keys and others & keys:
            return f"{min(others & keys)!r} beside {one!r}"
    return ""


_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_APART = {
    "pattern": {"minLength", "maxLength", "format"},
    "format": {"minLength", "maxLength"},
    "properties": {"patternProperties"},
}


def _schemas(root: Any) -> Iterator[dict[str, Any]]:
    """Every schema within a schema, itself first."""
    rest = [root]
    while rest:
        schema = rest.pop()
        if not isinstance(schema, dict):
            continue
        yield schema
        for key, value in schema.items():
            if key in _SCHEMAS:
                rest.append(value)
            elif key in _LISTS and isinstance(value, list):
                rest += value
            elif key in _TABLES and isinstance(value, dict):
                rest += value.values()


def _quoted(text: str) -> str:
    """A literal of xgrammar's EBNF."""
    return '"' + "".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08X}" for c in text) + '"'


def _what(error: Exception) -> str:
    """Without the place in the library's source."""
    text = str(error).strip().split("\n")[0]
    return text.split(": ", 1)[-1][:300] if text.startswith("[") else text[:300]
