"""One engine process, and the socket to it."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import subprocess
import sys

from headrace.config import EngineConfig
from headrace.server.messages import FromEngine, Start, ToEngine
from headrace.server.wire import ApiEnd

STOP_S = 5.0
"""How long an engine may take to end once its socket is closed."""


class EngineProcess:
    """From its start to its end."""

    def __init__(self, process: subprocess.Popen[bytes], end: ApiEnd) -> None:
        self._process, self._end = process, end
        self._killed = ""

    @classmethod
    async def start(cls, config: EngineConfig, *, log_json: bool) -> EngineProcess:
        """One that loads; adapters are told to it later. log_json: how it writes its own log."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "headrace.server.worker", str(theirs.fileno())]
            command += ["json"] if log_json else []
            process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)
        made = cls(process, await ApiEnd.open(ours))
        room = min(
            config.max_seqs + config.max_waiting, 1_000_000
        )  # EngineClient.submit says when it is full
        made.send(Start(fields_of(config) | {"max_waiting": room, "adapters": {}}))
        return made

    def send(self, message: ToEngine) -> None:
        """Hands it over; that the process is gone shows when reading."""
        self._end.send(message)

    async def receive(self) -> FromEngine:
        """The next message. Raises Closed."""
        return await self._end.receive()

    def kill(self, why: str) -> None:
        """Ends it at once; `cause` says why."""
        self._killed = why
        self._process.kill()

    async def stop(self) -> None:
        """Closes the socket, and sees to it that the process ends."""
        self._end.close()
        if self._process.returncode is not None:
            return
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(None, self._process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await loop.run_in_executor(None, self._process.wait)

    @property
    def pid(self) -> int | None:
        """None once it has ended."""
        return self._process.pid if self._process.returncode is None else None

    @property
    def cause(self) -> str:
        """What ended it."""
        code = self._process.poll()
        if self._killed or code is None:
            return self._killed or "it closed its socket"
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def fields_of(config: EngineConfig) -> dict[str, object]:
    """What EngineConfig.from_mapping makes the same of, in another process."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)} | {
        "stack": dict(config.stack),
        "adapters": dict(config.adapters),
    }
