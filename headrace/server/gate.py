"""What every request passes before a route sees it: its id, who it is from, how large it is, and whether we are open.

Deny by default: with an API key set, every path but those in OPEN needs it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from headrace.server.errors import ApiError
from headrace.server.live import PATHS
from headrace.server.record import MAX_PATH_CHARS, Record
from headrace.server.schema import MAX_BODY_BYTES, MAX_HEADER_BYTES, is_id

OPEN = frozenset({"/health", "/health/live", "/health/ready", "/ping", *PATHS})
"""Paths that need no key: they tell a load balancer yes or no, and show an empty page that asks for the key."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Addresses that only this machine reaches."""
TRACE = ("traceparent", "tracestate")
"""Headers that say which trace a request is part of."""
_log = logging.getLogger(__name__)

Scope = dict[str, Any]


@dataclass
class Door:
    """Whom to let in; `draining` changes."""

    api_keys: Sequence[str] = ()
    hosts: Sequence[str] | None = None
    """Names that a Host header may have; None is any."""
    draining: bool = False
    _digests: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in self.api_keys]

    def check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Raises ApiError for a request that stays out."""
        host = headers.get(b"host", b"").decode("latin-1")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if self.hosts is not None and name.lower() not in self.hosts:
            raise ApiError(
                403, "host_not_allowed", "the Host header names another machine than this server's"
            )
        if scope["path"] in OPEN:
            return
        if self._digests and not self._knows(headers.get(b"authorization", b"")):
            raise ApiError(
                401, "invalid_api_key", "the API key is missing or wrong: send Authorization: Bearer KEY"
            )
        if self.draining and scope["method"] == "POST":
            raise ApiError(503, "shutting_down", "the server is shutting down: ask another one, or later")

    def _knows(self, header: bytes) -> bool:
        kind, _, key = header.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        # all of them, so that the time says nothing
        found = [hmac.compare_digest(digest, known) for known in self._digests]
        return kind.lower() == b"bearer" and any(found)


def hosts_for(bind: str) -> list[str] | None:
    """Host headers that a server bound to `bind` answers: a web page elsewhere must not reach a local one by a name of
    its own (DNS rebinding)."""
    return [*LOOPBACK, "[::1]"] if bind in LOOPBACK else None


class Gate:
    """The outermost ASGI application."""

    def __init__(
        self,
        door: Door,
        on_end: Callable[[Record], None] = lambda record: None,
        *,
        max_body: int = MAX_BODY_BYTES,
    ) -> None:
        """on_end: told of every request, when it has ended."""
        self._app: Any = None
        self._door, self._on_end, self._max_body = door, on_end, max_body

    def open(self, app: Any) -> None:
        """From here on requests reach `app`; before, they are told to wait."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        asked = headers.get(b"x-request-id", b"").decode("latin-1")
        name = asked if is_id(asked) else f"req-{secrets.token_hex(12)}"
        trace = {key: headers[key.encode()].decode("latin-1") for key in TRACE if key.encode() in headers}
        record = Record(name, scope["method"], scope["path"][:MAX_PATH_CHARS], trace)
        scope.setdefault("state", {}).update(request_id=name, record=record)

        async def named(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name.encode())]
            await send(message)

        try:
            self._measure(headers, scope)
            self._door.check(scope, headers)
            if self._app is None:
                raise ApiError(503, "loading", "the model is being loaded: try again in a moment")
            await self._app(scope, self._counted(receive), named)
        except ApiError as error:
            await refuse(named, error, name)
        except Exception:
            _log.debug("request %s: answered and logged by the application", name, exc_info=True)
        finally:
            record.end(scope)
            self._on_end(record)

    def _measure(self, headers: dict[bytes, bytes], scope: Scope) -> None:
        if sum(len(key) + len(value) + 4 for key, value in scope["headers"]) > MAX_HEADER_BYTES:
            raise ApiError(431, "headers_too_large", f"the headers are longer than {MAX_HEADER_BYTES} bytes")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(413, "body_too_large", f"the body is longer than {self._max_body} bytes")

    def _counted(self, receive: Any) -> Any:
        """`receive`, which ends a body that is longer than it said."""
        seen = 0

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_body:
                raise self._too_large()
            return message

        return counted


async def refuse(send: Any, error: ApiError, request_id: str) -> None:
    """Answers with an error, without any framework."""
    body = msgspec.json.encode(error.body(request_id))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(key.lower().encode(), value.encode()) for key, value in error.headers.items()]
    if error.status in (413, 431):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
