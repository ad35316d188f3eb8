"""Messages over a socket: four bytes of length, then the message.

    [ length, little-endian u32 ][ msgpack ... ] [ length ][ ... ]

The engine's end blocks, and looks for messages between steps; the API's end belongs to an event loop.
"""

from __future__ import annotations

import asyncio
import select
import socket
from typing import Any

import msgspec

from headrace.server.messages import FromEngine, ToEngine, encode, from_engine, to_engine

MAX_BYTES = 64 << 20
"""Longest message: a prompt of a million tokens fits. A longer length is a broken stream."""
_LENGTH = 4


class Closed(ConnectionError):
    """The other process is gone, or what it sent is no message."""


def frame(message: ToEngine | FromEngine) -> bytes:
    """A message with its length before it."""
    data = encode(message)
    if len(data) > MAX_BYTES:
        raise Closed(f"a message of {len(data)} bytes; at most {MAX_BYTES}")
    return len(data).to_bytes(_LENGTH, "little") + data


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes | memoryview) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        raise Closed(f"not a message: {error}") from None


def _length(head: bytes | bytearray) -> int:
    size = int.from_bytes(head[:_LENGTH], "little")
    if size > MAX_BYTES:
        raise Closed(f"a message of {size} bytes; at most {MAX_BYTES}")
    return size


class EngineEnd:
    """The engine's end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._unread = bytearray()

    def send(self, message: FromEngine) -> None:
        """Raises Closed if nobody listens any more."""
        try:
            self._sock.sendall(frame(message))
        except OSError as error:
            raise Closed(f"the API process is gone: {error.strerror}") from None

    def receive(self, *, wait: bool) -> list[ToEngine]:
        """Every message that has come; with `wait`, at least one. Raises Closed."""
        found: list[ToEngine] = []
        while True:
            found += self._parse()
            blocking = wait and not found
            if not blocking and not select.select([self._sock], [], [], 0)[0]:
                return found
            try:
                data = self._sock.recv(1 << 20)
            except OSError as error:
                raise Closed(f"the API process is gone: {error.strerror}") from None
            if not data:
                raise Closed("the API process is gone")
            self._unread += data

    def _parse(self) -> list[ToEngine]:
        found = []
        begin = 0
        while len(self._unread) - begin >= _LENGTH:
            end = begin + _LENGTH + _length(self._unread[begin : begin + _LENGTH])
            if end > len(self._unread):
                break
            found.append(_decode(to_engine, bytes(self._unread[begin + _LENGTH : end])))
            begin = end
        del self._unread[:begin]
        return found


class ApiEnd:
    """The API's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, sock: socket.socket) -> ApiEnd:
        return cls(*await asyncio.open_unix_connection(sock=sock))

    def send(self, message: ToEngine) -> None:
        """Hands it over; what the engine does not read yet is kept. A closed socket shows when reading."""
        self._writer.write(frame(message))

    async def receive(self) -> FromEngine:
        """The next message. Raises Closed."""
        try:
            size = _length(await self._reader.readexactly(_LENGTH))
            data = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, OSError):
            raise Closed("the engine process is gone") from None
        message: FromEngine = _decode(from_engine, data)
        return message

    def close(self) -> None:
        self._writer.close()
