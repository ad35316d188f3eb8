"""Server-sent events: the end is always there, silence is broken, and an error arrives."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from headrace.server.client import EngineDied
from headrace.server.run import Options, listen
from headrace.server.stream import DONE, PING, EventStream, events


def collect(values: AsyncIterator[Any], **options: Any) -> list[bytes]:
    async def run() -> list[bytes]:
        return [data async for data in events(values, "req-1", **options)]

    return asyncio.run(run())


async def numbers(count: int) -> AsyncIterator[int]:
    for i in range(count):
        yield i


def test_values_then_done() -> None:
    assert collect(numbers(2)) == [b"data: 0\n\n", b"data: 1\n\n", DONE]


def test_silence_is_broken() -> None:
    released = asyncio.Event()

    async def slow() -> AsyncIterator[int]:
        yield 1
        await released.wait()
        yield 2

    async def run() -> list[bytes]:
        got = []
        async for data in events(slow(), "req-1", ping_s=0.01):
            got.append(data)
            if got.count(PING) == 3:
                released.set()
        return got

    got = asyncio.run(run())
    assert got.count(PING) >= 3 and [data for data in got if data != PING] == [
        b"data: 1\n\n",
        b"data: 2\n\n",
        DONE,
    ]


def test_an_error_is_the_last_event() -> None:
    async def dying() -> AsyncIterator[int]:
        yield 1
        raise EngineDied("signal 9")

    first, error, done = collect(dying())
    assert (
        first == b"data: 1\n\n" and b'"code":"engine_dead"' in error and b"signal 9" in error and done == DONE
    )


def test_an_unexpected_error_tells_nothing() -> None:
    async def broken() -> AsyncIterator[int]:
        raise RuntimeError("/secret/path 0xdeadbeef")
        yield 1

    error, done = collect(broken())
    assert b"internal_error" in error and b"secret" not in error and done == DONE


def test_a_reader_that_leaves_ends_what_is_read() -> None:
    ended = []

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0)
        finally:
            ended.append(True)

    async def run() -> None:
        stream = events(endless(), "req-1")
        await anext(stream)
        await stream.aclose()

    asyncio.run(run())
    assert ended == [True]


def test_small_pieces_do_not_wait_for_each_other() -> None:
    """A connection of ours sends at once: with Nagle's algorithm, the end of an answer waits 40 ms for the beginning
    to be acknowledged."""
    seen: list[int] = []

    def arrived(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def connect() -> None:
        listening = listen(Options(host="127.0.0.1", port=0))
        async with await asyncio.start_server(arrived, sock=listening):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            await reader.read()
            writer.close()

    asyncio.run(connect())
    assert seen == [1]


def test_a_reader_that_stalled_and_hangs_up_ends_its_request() -> None:
    """The lost connection lets a waiting send go on in the very moment that it cancels the sending."""
    made: list[int] = []

    async def body() -> AsyncGenerator[bytes, None]:
        for number in range(1000):
            made.append(number)
            yield b"x"
            await asyncio.sleep(0)

    async def run() -> None:
        lost = asyncio.Event()

        async def send(message: dict[str, Any]) -> None:
            if len(made) == 3:
                asyncio.get_running_loop().call_soon(lost.set)
                await lost.wait()

        async def receive() -> dict[str, Any]:
            await lost.wait()
            return {"type": "http.disconnect"}

        await EventStream(body(), {}, lambda: None)({}, receive, send)

    asyncio.run(run())
    assert len(made) == 3


def test_a_reader_that_is_gone_at_once() -> None:
    """What makes the events may never have been asked for one, and cannot be closed then: somebody is told."""
    told: list[str] = []

    async def run(failing: bool) -> None:
        async def send(message: dict[str, Any]) -> None:
            if failing:
                raise OSError("the connection is lost")

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        await EventStream(events(numbers(9), "r"), {}, lambda: told.append("ended"))({}, receive, send)

    asyncio.run(run(failing=False))
    assert told == ["ended"]
    with pytest.raises(OSError, match="lost"):
        asyncio.run(run(failing=True))
    assert told == ["ended", "ended"]
