"""The form that a client wants of an answer, in OpenAI's and in vLLM's words; checked before the engine sees it.

A schema comes from a stranger. Its size and depth are counted first; then it is compiled in a process of its own, which
is killed when it takes too long: what passes is compiled again beside the engine, in no longer time.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any, Protocol

import msgspec

from headrace.params import MAX_GRAMMAR_CHARS, Grammar
from headrace.server.errors import ApiError, bad
from headrace.server.killable import Killable, Killed, answering

MAX_DEPTH, MAX_NODES = 32, 2000
MAX_PATTERN_CHARS = 1024
MAX_CHOICES = 1000
CHECK_S = 2.0
"""How long compiling may take."""
MEMORY = 512 << 20
"""Bytes that it may take."""
_KNOWN = 4096
"""Grammars whose answer is remembered: a digest and at most a line each, a few megabytes in all."""


class ResponseFormat(msgspec.Struct, kw_only=True):
    """`response_format`."""

    type: str
    json_schema: dict[str, Any] | None = None
    schema: dict[str, Any] | None = None


class StructuredOutputs(msgspec.Struct, kw_only=True):
    """`structured_outputs`, as vLLM has it."""

    json: str | dict[str, Any] | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class Constrained(Protocol):
    """Fields of a body that ask for a form."""

    response_format: ResponseFormat | None
    structured_outputs: StructuredOutputs | None
    guided_json: str | dict[str, Any] | None
    guided_regex: str | None
    guided_choice: list[str] | None
    guided_grammar: str | None


def of_format(form: ResponseFormat | None) -> Grammar | None:
    """OpenAI's response_format. Raises ApiError."""
    if form is None or form.type == "text":
        return None
    if form.type == "json_object" and form.schema is None:
        return Grammar("json_object")
    if form.type not in ("json_object", "json_schema"):
        raise bad(
            f"response_format.type={form.type!r}: known: text, json_object, json_schema", "response_format"
        )
    schema = form.schema if form.schema is not None else (form.json_schema or {}).get("schema")
    if not isinstance(schema, dict):
        raise bad("response_format needs json_schema.schema, an object", "response_format")
    return _schema(schema, "response_format")


def of_structured(outputs: StructuredOutputs | None) -> Grammar | None:
    """vLLM's structured_outputs. Raises ApiError."""
    if outputs is None:
        return None
    given = {name: value for name in outputs.__struct_fields__ if (value := getattr(outputs, name))}
    if len(given) != 1:
        names = ", ".join(outputs.__struct_fields__)
        raise bad(f"structured_outputs needs exactly one of {names}", "structured_outputs")
    [(name, value)] = given.items()
    where = f"structured_outputs.{name}"
    match name:
        case "json_object":
            return Grammar("json_object")
        case "json":
            return _schema(value, where)
        case "regex":
            return _sized("regex", value, where, MAX_PATTERN_CHARS)
        case "grammar":
            return _sized("lark", value, where, MAX_GRAMMAR_CHARS)
    if len(value) > MAX_CHOICES or not all(value):
        raise bad(f"{where}: 1 to {MAX_CHOICES} texts, none of them empty", where)
    return _sized("choice", json.dumps(value, ensure_ascii=False), where, MAX_GRAMMAR_CHARS)


def of(body: Constrained) -> tuple[Grammar, str] | None:
    """The form that a body asks for, and which field asks. Raises ApiError, also for two."""
    guided = StructuredOutputs(
        json=body.guided_json, regex=body.guided_regex, choice=body.guided_choice, grammar=body.guided_grammar
    )
    asked = [
        ("response_format", of_format(body.response_format)),
        ("structured_outputs", of_structured(body.structured_outputs)),
        ("guided_*", of_structured(guided) if guided != StructuredOutputs() else None),
    ]
    found = [(grammar, name) for name, grammar in asked if grammar is not None]
    if len(found) > 1:
        names = " and ".join(name for _, name in found)
        raise bad(f"{names} each ask for a form: give one", found[1][1])
    return found[0] if found else None


def _sized(kind: Any, text: str, where: str, limit: int) -> Grammar:
    if len(text) > limit:
        raise too_complex(f"{where} has {len(text)} characters; at most {limit}", where)
    return Grammar(kind, text)


def _schema(schema: str | dict[str, Any], where: str) -> Grammar:
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            raise bad(f"{where} is not a JSON schema: {error}", where) from None
    measure(schema, where)
    return _sized("json_schema", json.dumps(schema, ensure_ascii=False), where, MAX_GRAMMAR_CHARS)


def measure(schema: Any, where: str) -> None:
    """Raises ApiError for a schema that is too large or too deep, without recursion of its own."""
    level, nodes = [schema], 0
    for _ in range(MAX_DEPTH):
        nodes += len(level)
        if nodes > MAX_NODES:
            raise too_complex(f"{where} has more than {MAX_NODES} parts", where)
        level = [part for value in level for part in _parts(value, where)]
        if not level:
            return
    raise too_complex(f"{where} is more than {MAX_DEPTH} levels deep", where)


def _parts(value: Any, where: str) -> list[Any]:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return []
    reference = value.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise bad(
            f"{where}: $ref={reference[:80]!r} leads elsewhere: only references within the schema are followed",
            where,
        )
    pattern = value.get("pattern")
    if isinstance(pattern, str) and len(pattern) > MAX_PATTERN_CHARS:
        raise too_complex(f"{where}: a pattern has more than {MAX_PATTERN_CHARS} characters", where)
    return list(value.values())


def too_complex(text: str, where: str) -> ApiError:
    """A form that would cost too much."""
    return bad(text, where, "schema_too_complex")


class Checker:
    """Compiles grammars in another process, one at a time; belongs to one event loop."""

    def __init__(self, folder: str, spec: str, size: int, eos: tuple[int, ...]) -> None:
        """folder: the model's. spec: of the slot `grammar`."""
        self._process = Killable("headrace.server.grammars", [folder, spec, size, eos])
        self._known: dict[bytes, str] = {}
        """Digest of a grammar -> what is wrong with it; least recently asked first."""

    async def check(self, grammar: Grammar, where: str) -> None:
        """Raises ApiError if it cannot be compiled, or not in time."""
        key = hashlib.blake2b(f"{grammar.kind} {grammar.text}".encode(), digest_size=16).digest()
        answer = self._known.pop(key, None)
        if answer is None:
            answer = await self._ask(grammar, where)
        self._known[key] = answer
        if len(self._known) > _KNOWN:
            del self._known[next(iter(self._known))]
        if answer:
            raise bad(f"{where}: {answer}", where)

    async def _ask(self, grammar: Grammar, where: str) -> str:
        try:
            return str(await self._process.ask([grammar.kind, grammar.text], CHECK_S))
        except Killed:
            text = f"{where} takes longer than {CHECK_S:g} s to compile, or too much memory"
            raise too_complex(text, where) from None

    async def close(self) -> None:
        """Ends the process."""
        await self._process.close()


def main() -> None:
    """The other process: what is wrong with a grammar; nothing if it is empty."""
    from headrace.errors import ConfigError
    from headrace.sample.grammars import SLOT
    from headrace.sample.vocabulary import Vocabulary
    from headrace.text.tokenizer import Tokenizer

    folder, spec, size, eos = json.loads(sys.argv[1])
    compiler = SLOT.make(spec).start(Vocabulary(Tokenizer(folder), size, tuple(eos)))

    def answer(question: Any) -> str:
        kind, text = question
        try:
            compiler.compile(Grammar(kind, text)).mask()
        except (ConfigError, ValueError) as error:
            return str(error)
        return ""

    answering(answer, MEMORY)


if __name__ == "__main__":
    main()
