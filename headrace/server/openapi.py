"""/openapi.json: what each path takes and gives, errors too, so that clients and fuzzers can be made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from headrace.server.live import PATHS, TYPES

_ERROR = {
    "title": "Error",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code", "request_id"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
                "request_id": {"type": "string"},
            },
            "additionalProperties": False,
        }
    },
    "additionalProperties": False,
}
_ERRORS = {
    400: "A value that cannot be, or a body that is none.",
    401: "The API key is missing or wrong.",
    403: "The Host header names another machine.",
    404: "No such model or path.",
    405: "The path does not know the method.",
    413: "The body is too large.",
    429: "The queue is full: Retry-After says when to try again.",
    431: "The headers are too large.",
    503: "There is no engine at the moment: Retry-After says when to try again.",
}
_TYPES = {"/metrics": "text/plain", **{path: TYPES[Path(name).suffix] for path, name in PATHS.items()}}
_EMPTY = frozenset({"/health", "/health/live", "/health/ready", "/ping"})
_STREAMS = frozenset({"/v1/completions", "/v1/chat/completions"})


def describe(app: FastAPI, bodies: Mapping[str, type]) -> None:
    """Makes the application say so. bodies: what is posted to which path."""
    made: list[dict[str, Any]] = []

    def openapi() -> dict[str, Any]:
        if not made:
            made.append(_document(app, bodies))
        return made[0]

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI, bodies: Mapping[str, type]) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    references, components = msgspec.json.schema_components(
        bodies.values(), ref_template="#/components/schemas/{name}"
    )
    schemas = {"Error": _ERROR, **components}
    document["components"] = {"schemas": schemas}
    reference = dict(zip(bodies, references, strict=True))
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["responses"] = _responses(path)
            if method == "post":
                operation["requestBody"] = _json(reference[path]) | {"required": True}
    return document


def _responses(path: str) -> dict[str, Any]:
    good: dict[str, Any] = {"description": "As asked."}
    if path not in _EMPTY:
        good |= {"content": {_TYPES.get(path, "application/json"): {}}}
    if path in _STREAMS:
        good["content"]["text/event-stream"] = {}
    error = _json({"$ref": "#/components/schemas/Error"})
    return {"200": good, **{str(status): {"description": text, **error} for status, text in _ERRORS.items()}}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}
