"""Server-sent events, as OpenAI's clients read them.

data: {...}  ...  data: [DONE]          each with an empty line after it
data: {"error": {...}}  data: [DONE]    an error after the first byte
:                                       every ten silent seconds: clients give up on a connection that says nothing
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from headrace.server import errors

PING_S = 10.0
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
DONE = b"data: [DONE]\n\n"
PING = b": \n\n"
_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class EventStream(Response):
    """Sends events until they end or the client is gone; then nothing of them goes on.

    A generator that nobody has asked for anything cannot be told that it is over, and a client may be gone before the
    first event was asked for: so `ended` is called in any case.
    """

    def __init__(
        self, body: AsyncGenerator[bytes, None], headers: Mapping[str, str], ended: Callable[[], None]
    ) -> None:
        super().__init__(headers={**HEADERS, **headers})
        del self.headers["content-length"]
        self._body, self._ended = body, ended

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._follow(receive, send)
        finally:
            await self._body.aclose()
            self._ended()

    async def _follow(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        gone = asyncio.ensure_future(disconnected(receive))
        sending = asyncio.ensure_future(self._send(send, gone))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)

    async def _send(self, send: Any, gone: asyncio.Future[None]) -> None:
        async for data in self._body:
            await send({"type": "http.response.body", "body": data, "more_body": True})
            if gone.done():  # a lost connection lets a waiting send go on
                return
        await send({"type": "http.response.body", "body": b""})


async def disconnected(receive: Any) -> None:
    """Waits until the client hangs up; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def event(value: Any) -> bytes:
    """One event."""
    return b"data: " + _encode(value) + b"\n\n"


async def events(
    values: AsyncIterator[Any], request_id: str, *, ping_s: float = PING_S
) -> AsyncGenerator[bytes, None]:
    """Each value as an event, then [DONE]. An error becomes the last event but one."""
    try:
        async for item in _with_pings(values, ping_s):
            yield PING if item is _SILENCE else event(item)
    except Exception as error:  # the status was sent long ago: the client must hear of it here
        told = errors.of(error)
        if told.status == 500:
            _log.exception("request %s failed", request_id)
        yield event(told.body(request_id))
    yield DONE


_SILENCE = object()


async def _with_pings(values: AsyncIterator[Any], ping_s: float) -> AsyncIterator[Any]:
    """The values, and _SILENCE whenever none came for so long."""
    pending: asyncio.Future[Any] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(values))
            done, _ = await asyncio.wait({pending}, timeout=ping_s)
            if not done:
                yield _SILENCE
                continue
            finished, pending = pending, None
            try:
                yield finished.result()
            except StopAsyncIteration:
                return
    finally:
        if pending is not None:
            pending.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await pending
        close = getattr(values, "aclose", None)
        if close is not None:
            await close()
