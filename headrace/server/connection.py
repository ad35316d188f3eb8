"""One connection of a client: how long it may keep us waiting, and how many there may be.

                       nothing yet, or half a header: HEADER_S     half a body: REQUEST_S
    data of an answer that the client does not take: STALL_S       silence between two requests: uvicorn's keep-alive

Whoever is later than that is cut off, which ends what it asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from http import HTTPStatus
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from headrace.server.errors import ApiError

HEADER_S, REQUEST_S, STALL_S = 10.0, 60.0, 60.0
SPARE_FILES = 128
"""File descriptors that connections leave to everything else: sockets and pipes of the engine, files."""


def most_connections() -> int:
    """How many the system lets us have, once we have asked it for as many as it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1 << 16) if hard != resource.RLIM_INFINITY else 1 << 16
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES, 1)


def _answer(status: HTTPStatus, code: str, message: str) -> bytes:
    """A whole answer for whoever gets no further."""
    body = msgspec.json.encode(ApiError(status, code, message).body(""))
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    )
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


_FULL = _answer(
    HTTPStatus.SERVICE_UNAVAILABLE, "too_many_connections", "too many connections: try again later"
)
_BROKEN = _answer(HTTPStatus.BAD_REQUEST, "invalid_http", "this is not HTTP/1.1")


class Connection(H11Protocol):
    """uvicorn's, with bounds."""

    def __init__(self, *args: Any, most: int, **kwargs: Any) -> None:
        """most: connections at once; whoever comes then is told to come again."""
        super().__init__(*args, **kwargs)
        self._most = most
        self._phase: object = h11.IDLE
        self._late: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most:
            transport.write(_FULL)
            transport.close()
            return
        self._late = self.loop.call_later(HEADER_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _cancel(self._late)
        _cancel(self._stalled)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        phase = self.conn.their_state
        if phase is self._phase:  # a byte now and then gains no time
            return
        self._phase = phase
        _cancel(self._late)
        if phase is h11.IDLE and self.conn.trailing_data[0]:
            self._late = self.loop.call_later(HEADER_S, self.transport.abort)
        elif phase is h11.SEND_BODY:
            self._late = self.loop.call_later(REQUEST_S, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(_BROKEN)
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._stalled)
        self._stalled = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(STALL_S, self._let_go)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._let_go()

    def _let_go(self) -> None:
        """Closing waits for the client to take what is left; not for ever."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self.transport.abort()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
