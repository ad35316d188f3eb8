"""A process for work that strangers' data may make endless: one question at a time, and killed when it takes too long.

    question -> [ length, little-endian u32 ][ JSON ] -> the process      over a socket, its standard input
    answer   <- [ length, little-endian u32 ][ JSON ] <- the process

The process is bounded in memory and in processor time by the kernel too, so that it ends by itself if its owner is
killed while it works.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from headrace.errors import HeadraceError

START_S = 60.0
"""How long the process may take until it is ready."""
_LENGTH = 4
_MOST = 256 << 20  # bytes of a message: a longer one is none


class Killed(HeadraceError):
    """There is no answer: it took too long, or the process did not survive the question."""


class Killable:
    """The owner's side; belongs to one event loop."""

    def __init__(self, module: str, about: Any) -> None:
        """module: its main() calls `answering`. about: JSON that it finds in sys.argv[1]."""
        self._command = (sys.executable, "-m", module, json.dumps(about))
        self._turn = asyncio.Lock()
        self._starting: asyncio.Task[_Process] | None = None

    def warm(self) -> None:
        """Starts the process now, so that the first question need not wait for it."""
        if self._starting is None:
            self._starting = asyncio.create_task(_start(self._command), name=self._command[2])

    async def ask(self, question: Any, seconds: float) -> Any:
        """The answer. Raises Killed if there is none within `seconds`, and starts another process then."""
        data = msgspec.json.encode([seconds, question])
        async with self._turn:
            self.warm()
            assert self._starting is not None
            try:
                process = await asyncio.shield(self._starting)
                process.writer.write(len(data).to_bytes(_LENGTH, "little") + data)
                return await asyncio.wait_for(_receive(process.reader), seconds)
            except (asyncio.TimeoutError, asyncio.IncompleteReadError, OSError):
                await self.close()
                self.warm()
                raise Killed(f"no answer within {seconds:g} s") from None
            except asyncio.CancelledError:  # its answer must not be taken for the next question's
                await self.close()
                raise

    async def close(self) -> None:
        """Ends the process."""
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()
            with contextlib.suppress(
                asyncio.CancelledError, asyncio.TimeoutError, asyncio.IncompleteReadError, OSError
            ):
                await (await starting).end()


@dataclass
class _Process:
    process: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def end(self) -> None:
        self.writer.close()
        self.process.kill()
        await asyncio.get_running_loop().run_in_executor(None, self.process.wait)


async def _start(command: tuple[str, ...]) -> _Process:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(command, stdin=theirs.fileno())
    made = _Process(process, *await asyncio.open_unix_connection(sock=ours))
    try:
        await asyncio.wait_for(_receive(made.reader), START_S)
    except BaseException:
        await made.end()
        raise
    return made


async def _receive(reader: asyncio.StreamReader) -> Any:
    size = int.from_bytes(await reader.readexactly(_LENGTH), "little")
    if size > _MOST:
        raise OSError("a broken stream")
    return msgspec.json.decode(await reader.readexactly(size))


def answering(answer: Callable[[Any], Any], memory: int) -> None:
    """The process's side, once it has loaded what it needs: answers until its input ends.

    memory: bytes that one question may need beside what the process has now.
    """
    import resource

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, resource.RLIM_INFINITY))
    questions = open(0, "rb", closefd=False)
    answers = open(0, "wb", closefd=False)

    def write(value: Any) -> None:
        data = msgspec.json.encode(value)
        answers.write(len(data).to_bytes(_LENGTH, "little") + data)
        answers.flush()

    write("ready")
    while True:
        head = questions.read(_LENGTH)
        if len(head) < _LENGTH:
            return
        seconds, question = msgspec.json.decode(questions.read(int.from_bytes(head, "little")))
        spent = resource.getrusage(resource.RUSAGE_SELF)
        most = math.ceil(spent.ru_utime + spent.ru_stime + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))
        write(answer(question))
