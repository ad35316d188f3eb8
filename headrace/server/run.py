"""The API process: opens the port, starts the engine, serves until it is told to stop.

SIGTERM or SIGINT   new requests get 503; those under way may finish for DRAIN_S, then end with an error event
once more           at once
the engine is lost for good (client.State.FAILED): exit code 70
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from headrace.config import EngineConfig
from headrace.errors import ConfigError
from headrace.server.app import Api
from headrace.server.client import EngineClient, State
from headrace.server.connection import Connection, most_connections
from headrace.server.gate import LOOPBACK, Door, Gate, hosts_for
from headrace.server.journal import Journal
from headrace.server.live import Live
from headrace.server.messages import EXIT_ENGINE, Since, Stepped
from headrace.server.metrics import Metrics
from headrace.server.process import fields_of
from headrace.server.record import Record
from headrace.server.schema import MAX_HEADER_BYTES
from headrace.server.service import Service
from headrace.server.traces import Tracer
from headrace.text import tool_formats

DRAIN_S = 30.0
STAT_S = 10.0
"""Between two lines about a busy engine."""
_KEEP_ALIVE_S = 75
_SEND_BYTES = 256 << 10  # that the system keeps of an answer which is not read; it would take megabytes
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to serve, beside the engine's own configuration."""

    host: str = "127.0.0.1"
    port: int = 8000
    name: str = ""
    """What clients call the model; empty: the model's own name or folder."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    insecure: bool = False
    """Let other machines in without a key."""
    strict: bool = False
    """Refuse parameters that are not known."""
    lora_root: str = ""
    """A folder of adapters that clients may add and remove; empty: they cannot."""
    log_json: bool = False
    """The log as JSON objects, one a line; with one for every request."""
    log_requests: bool = False
    """A line for every request."""
    quiet: bool = False
    """No line about what goes as it should."""
    otlp_traces_endpoint: str = ""
    """URL of a collector of OpenTelemetry's spans; empty: none are made."""
    tool_parser: str = ""
    """How the model writes calls of tools (text/tool_formats.py); empty: its template tells."""

    def __post_init__(self) -> None:
        if self.tool_parser:
            tool_formats.named(self.tool_parser)  # raises ConfigError before the engine has loaded


def listen(options: Options) -> socket.socket:
    """The socket. Raises ConfigError if the port is taken, or open to everybody."""
    if options.host not in LOOPBACK and not options.api_keys and not options.insecure:
        raise ConfigError(
            f"--host {options.host} lets other machines in without a key: set --api-key, or say --insecure"
        )
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio leaves Nagle on
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
    try:
        sock.bind((options.host, options.port))
    except (OSError, OverflowError) as error:
        sock.close()
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen on {options.host}:{options.port} ({why}): choose another --port"
        ) from None
    return sock


def served_name(config: EngineConfig, options: Options) -> str:
    """What clients call the model."""
    return options.name or config.model.rstrip("/").rpartition("/")[2]


def check_adapters(config: EngineConfig, options: Options) -> None:
    """Raises ConfigError for what no engine need be started to see."""
    name = served_name(config, options)
    if name in config.adapters:
        raise ConfigError(f"an adapter is called {name!r}, as the model is: name it otherwise")
    if options.lora_root and not Path(options.lora_root).is_dir():
        raise ConfigError(f"--lora-root {options.lora_root} is not a folder: name one that holds adapters")


async def serve(config: EngineConfig, options: Options, write: Callable[[str], None]) -> int:
    """Serves until a signal; returns the exit code. `write`: takes a line of the log. Raises ConfigError."""
    with contextlib.ExitStack() as stack:
        tracer = Tracer(options.otlp_traces_endpoint) if options.otlp_traces_endpoint else None
        check_adapters(config, options)
        sock = stack.enter_context(contextlib.closing(listen(options)))
        journal = Journal(write, as_json=options.log_json, requests=options.log_requests, quiet=options.quiet)
        stack.enter_context(journal.instead_of_stderr())
        if tracer is not None:
            stack.callback(tracer.close)
        return await _serve(config, options, sock, journal, tracer)


async def _serve(
    config: EngineConfig, options: Options, sock: socket.socket, journal: Journal, tracer: Tracer | None
) -> int:
    door = Door(api_keys=options.api_keys, hosts=hosts_for(options.host))
    name = served_name(config, options)
    metrics = Metrics(name, lost=lambda: journal.lost, max_seqs=config.max_seqs)
    live = Live()

    def on_step(step: Stepped) -> None:
        metrics.step(step)
        live.step(step)

    def on_end(record: Record) -> None:
        metrics.request(record)
        journal.request(record)
        if tracer is not None:
            tracer.request(record)

    gate = Gate(door, on_end)
    client = EngineClient(config, on_step=on_step, log_json=options.log_json)
    server = _Server(uvicorn.Config(gate, http=_connections(), **_HTTP))
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    stop = Stop(door, client)
    stop.listen()
    starting = asyncio.create_task(client.start())
    try:
        if not await stop.unless_asked(starting):
            return 0
        service = Service(client, name, metrics, options.tool_parser)
        root = Path(options.lora_root) if options.lora_root else None
        gate.open(Api(service, live, strict=options.strict, lora_root=root).app())
        facts, url = starting.result().facts, f"http://{_shown(sock)}/v1"
        journal.say("engine", facts)
        journal.say("tools", f"tool calls: {service.tools.facts}")
        journal.say("serving", f"serving {name} on {url}", model=name, url=url)
        try:
            return await stop.wait(Stat(client, journal), journal)
        finally:
            await service.close()
    finally:
        starting.cancel()
        await client.close()
        server.should_exit = True
        await serving


@contextlib.contextmanager
def in_background(config: EngineConfig, options: Options, say: Callable[[str], None]) -> Iterator[str]:
    """A server in a process of its own, until the block ends; its address. Raises ConfigError if it does not start."""
    command = [sys.executable, "-m", "headrace.server.run"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(msgspec.json.encode([fields_of(config), dataclasses.asdict(options)]) + b"\n")
    process.stdin.flush()
    try:
        for line in process.stdout:
            text = line.decode().rstrip("\n")
            say(text)
            found = re.search(r"on (http://\S+)/v1$", text)
            if found:
                yield found[1]
                break
        else:
            raise ConfigError("the server did not start: the lines above say why")
    finally:
        process.terminate()
        process.communicate()


_HTTP: dict[str, Any] = {
    "timeout_keep_alive": _KEEP_ALIVE_S,
    "timeout_graceful_shutdown": 2,
    "h11_max_incomplete_event_size": 2 * MAX_HEADER_BYTES,  # above it, no answer can say why
    "lifespan": "off",
    "ws": "none",
    "server_header": False,
    "log_config": None,
    "access_log": False,
}


def _connections() -> Any:
    """What uvicorn makes of every connection."""
    return functools.partial(Connection, most=most_connections())


class _Server(uvicorn.Server):
    """Leaves signals alone: Stop has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Stop:
    """What ends the server: signals, or the loss of the engine."""

    def __init__(self, door: Door, client: EngineClient) -> None:
        self._door, self._client = door, client
        self._asked, self._now = asyncio.Event(), asyncio.Event()

    def listen(self) -> None:
        """From here on signals are heard."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signal)

    def _signal(self) -> None:
        (self._now if self._asked.is_set() else self._asked).set()
        self._door.draining = True

    async def unless_asked(self, task: asyncio.Task[Any]) -> bool:
        """Waits for a task; False if a signal comes first. Raises what the task raises."""
        asked = asyncio.create_task(self._asked.wait())
        await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if task.done():
            task.result()
        return task.done()

    async def wait(self, stat: Stat, journal: Journal) -> int:
        """Until the end; what is under way has finished by then, or had its time. The exit code."""
        while not self._asked.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._asked.wait(), STAT_S / 10)
            if self._client.state is State.FAILED:
                _log.error("%s", self._client.why)
                return EXIT_ENGINE
            stat.tell()
        if len(self._client):
            text = f"shutting down: {len(self._client)} requests may finish within {DRAIN_S:.0f} s"
            journal.say("draining", text, requests=len(self._client))
        end = time.monotonic() + DRAIN_S
        while len(self._client) and time.monotonic() < end and not self._now.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._now.wait(), 0.05)
        return 0


class Stat:
    """One line every STAT_S seconds about an engine that works; nothing about an idle one."""

    def __init__(self, client: EngineClient, journal: Journal) -> None:
        self._client, self._journal = client, journal
        self._at = time.monotonic()
        self._since = Since()

    def tell(self) -> None:
        """Writes the line, if it is time for one."""
        now = time.monotonic()
        took = now - self._at
        if took < STAT_S:
            return
        self._at = now
        view = self._client.view
        if view is None:
            return
        stats, new = view.stats, self._since(view.stats.counters)
        if not new.steps:
            return
        row = {
            "prompt_tokens_per_s": round(new.prompt_tokens / took, 1),
            "cached_ratio": round(new.cached_tokens / max(new.prompt_tokens, 1), 3),
            "generated_tokens_per_s": round(new.generated_tokens / took, 1),
            "running": stats.running,
            "waiting": stats.waiting + stats.swapped,
            "kv_usage": round(stats.kv_usage, 3),
        }
        text = (
            f"prompts {row['prompt_tokens_per_s']:.0f} tokens/s ({100 * row['cached_ratio']:.0f} % cached), "
            f"answers {row['generated_tokens_per_s']:.0f} tokens/s; {row['running']} running, "
            f"{row['waiting']} waiting, KV {100 * row['kv_usage']:.0f} % in use"
        )
        self._journal.say("stat", text, **row)


def _shown(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main() -> int:
    """What in_background starts: configuration and options come as a line of JSON on standard input."""
    fields, given = msgspec.json.decode(sys.stdin.buffer.readline())
    config = EngineConfig.from_mapping(fields, where="serve")
    options = Options(**{**given, "api_keys": tuple(given["api_keys"])})

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    try:
        return asyncio.run(serve(config, options, say))
    except ConfigError as error:
        say(f"error: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
