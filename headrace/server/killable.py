"""A process for work that strangers' data may make endless: one question at a time, and killed when it takes too long.

    question -> [ length, little-endian u32 ][ JSON ] -> the process      over its standard input
    answer   <- [ length, little-endian u32 ][ JSON ] <- the process      over its standard output

The process is bounded in memory and in processor time by the kernel too, so that it ends by itself if its owner is
killed while it works.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import msgspec

from headrace.errors import HeadraceError

MEMORY = 512 << 20
"""Bytes that one question may need beside what the process had when it was ready."""
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
        self._starting: asyncio.Task[asyncio.subprocess.Process] | None = None

    def warm(self) -> None:
        """Starts the process now, so that the first question need not wait for it."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name=self._command[2])

    async def ask(self, question: Any, seconds: float) -> Any:
        """The answer. Raises Killed if there is none within `seconds`, and starts another process then."""
        data = msgspec.json.encode([seconds, question])
        async with self._turn:
            self.warm()
            assert self._starting is not None
            try:
                process = await asyncio.shield(self._starting)
                return await asyncio.wait_for(_exchange(process, data), seconds)
            except (asyncio.TimeoutError, asyncio.IncompleteReadError, OSError):
                await self.close()
                self.warm()
                raise Killed(f"no answer within {seconds:g} s") from None
            except asyncio.CancelledError:  # its answer must not be taken for the next question's
                await self.close()
                raise

    async def _start(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe)
        try:
            await asyncio.wait_for(_receive(process), START_S)
        except BaseException:
            await _kill(process)
            raise
        return process

    async def close(self) -> None:
        """Ends the process."""
        starting, self._starting = self._starting, None
        if starting is None:
            return
        if not starting.done():
            starting.cancel()
        with contextlib.suppress(
            asyncio.CancelledError, asyncio.TimeoutError, asyncio.IncompleteReadError, OSError
        ):
            await _kill(await starting)


async def _exchange(process: asyncio.subprocess.Process, data: bytes) -> Any:
    assert process.stdin is not None
    process.stdin.write(len(data).to_bytes(_LENGTH, "little") + data)
    return await _receive(process)


async def _receive(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    size = int.from_bytes(await process.stdout.readexactly(_LENGTH), "little")
    if size > _MOST:
        raise OSError("a broken stream")
    return msgspec.json.decode(await process.stdout.readexactly(size))


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def answering(answer: Callable[[Any], Any]) -> None:
    """The process's side, once it has loaded what it needs: answers until its input ends."""
    import resource

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    _write(answers, "ready")
    while True:
        head = questions.read(_LENGTH)
        if len(head) < _LENGTH:
            return
        seconds, question = msgspec.json.decode(questions.read(int.from_bytes(head, "little")))
        spent = resource.getrusage(resource.RUSAGE_SELF)
        most = math.ceil(spent.ru_utime + spent.ru_stime + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))
        _write(answers, answer(question))


def _write(file: BinaryIO, value: Any) -> None:
    data = msgspec.json.encode(value)
    file.write(len(data).to_bytes(_LENGTH, "little") + data)
    file.flush()
