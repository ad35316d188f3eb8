"""Arguments that a model writes as plain text between marks: what they say as JSON, by the schema of the argument."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from headrace.text.scanner import Scanner, Unexpected

_KINDS = {'"': "string", "{": "object", "[": "array", "t": "boolean", "f": "boolean", "n": "null"}


def as_json(text: str, schema: Any) -> str:
    """JSON text. One line break at either end belongs to the marks.

    A string is the text as it stands; anything else is read as JSON, or as Python's literal, if the schema allows what
    it says. The rest are strings: a client that checks its arguments finds them.
    """
    text = text.removeprefix("\n").removesuffix("\n")
    kinds = kinds_of(schema)
    if kinds != {"string"}:
        value = _literal(text, python=bool(kinds))
        if value is not None and (not kinds or _kinds(value) & kinds):
            return value
    return json.dumps(text, ensure_ascii=False)


def kinds_of(schema: Any) -> set[str]:
    """The types that a schema names; empty where it names none."""
    named = schema.get("type") if isinstance(schema, Mapping) else None
    return {named} if isinstance(named, str) else set(named) if isinstance(named, list) else set()


def _literal(text: str, *, python: bool) -> str | None:
    """The text as JSON, if it is one value."""
    scan = Scanner()
    scan.feed(text.strip())
    scan.ended, scan.copy = True, []
    try:
        for _ in scan.value(python=python):
            pass
    except Unexpected:
        return None
    return None if scan.rest() else "".join(scan.copy)


def _kinds(value: str) -> set[str]:
    """What JSON text is: an integer is a number, too."""
    kind = _KINDS.get(value[0])
    if kind is not None:
        return {kind}
    return {"number"} if set(value) & set(".eE") else {"number", "integer"}
