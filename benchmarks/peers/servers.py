"""Who is compared under load, and one turn of one server: started, warmed up, asked, and ended.

Everyone serves the same random weights in 4 bits, with its defaults and with other batch sizes: trials show what suits
this load. headrace's keys and values take 16 bits, as llama.cpp's do; OpenVINO's take 8.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from benchmarks.peers.process import ROOT, Failed, reason
from benchmarks.peers.roster import HEADRACE, HEADRACE_FLAGS, llama_server_of, models_of, python_of
from headrace.server import load

START_S, STOP_S = 600.0, 20.0
WARM_TOKENS = 4
TTFT_S, ITL_S = 10.0, 1.0
"""The objective of goodput: a reader's patience on two cores, not a target of anybody's."""


@dataclass(frozen=True)
class Load:
    """What every server is asked. Lengths are in tokens."""

    shape: str
    vocab: int
    requests: int
    clients: int
    system: int
    """In front of every prompt."""
    own: tuple[int, int]
    """After it, fewest and most."""
    gen_len: int
    threads: int
    envs: Path
    timeout_s: float

    @property
    def context(self) -> int:
        """Room for the longest request."""
        return -(-(self.system + self.own[1] + self.gen_len) // 256) * 256

    def asks(self, seed: int) -> tuple[list[load.Ask], list[load.Ask]]:
        """Requests to warm up with (one per client, so that every slot has met the shared front), and to measure."""
        length = (self.system + self.own[0], self.system + self.own[1])
        shape = load.Shape(self.clients + self.requests, length, self.system, self.gen_len, vocab=self.vocab)
        made = load.make(shape, seed)
        warm = [load.Ask(ask.prompt[: self.system + 16], WARM_TOKENS, 0.0) for ask in made[: self.clients]]
        return warm, made[self.clients :]


@dataclass(frozen=True)
class Server:
    """One way to serve. Rows of the table are engines; the best variant of each is shown."""

    engine: str
    peer: str
    label: str = ""
    model: str = "source"
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.engine}, {self.label}" if self.label else self.engine

    def plus(self, options: Sequence[str]) -> Server:
        """With more options."""
        return dataclasses.replace(self, options=(*self.options, *options))

    def command(self, of: Load, port: int) -> list[str]:
        """What starts it."""
        model = str(models_of(of.envs, of.shape) / self.model)
        threads, seqs = str(of.threads), str(of.clients)
        if self.peer == HEADRACE:
            serve = [sys.executable, "-m", "headrace", "serve", "--model", model, "--port", str(port)]
            limits = ["--threads", threads, "--max-seqs", seqs, "--context", str(of.context)]
            return [*serve, *limits, *self.options]
        if self.peer == "llama_cpp":
            serve = [str(llama_server_of(of.envs)), "--model", model, "--port", str(port)]
            limits = ["--threads", threads, "--parallel", seqs, "--ctx-size", str(of.clients * of.context)]
            return [*serve, *limits, *self.options]
        module = "benchmarks.peers.runners.openvino_server"
        serve = [str(python_of(of.envs, self.peer)), "-m", module, "--model", model, "--port", str(port)]
        return [*serve, "--threads", threads, "--seqs", seqs, *self.options]

    def missing(self, of: Load) -> str | None:
        """Why it cannot run at all."""
        program = Path(self.command(of, 0)[0])
        if program.exists() and (models_of(of.envs, of.shape) / self.model).exists():
            return None
        setup = (
            f"python -m benchmarks.peers.setup llama_cpp openvino --shape {of.shape} --weights int4 --servers"
        )
        return f"not set up, or its model is missing: `{setup}`"


def _llama(kind: str, repack: bool, batch: int) -> Server:
    """Slots keep their own copy of the shared front (no unified cache, in which idle ones would be cleared)."""
    label = f"{kind} {'repacked' if repack else 'plain'}, batch {batch}"
    options = ["--batch-size", str(batch), "--ubatch-size", str(min(batch, 512)), "--no-kv-unified"]
    options += ["--cache-ram", "0", "--no-webui", *([] if repack else ["--no-repack"])]
    return Server("llama-server", "llama_cpp", label, f"llama_cpp/{kind}.gguf", tuple(options))


def _openvino(tokens: int) -> Server:
    options = ("--tokens", str(tokens))
    return Server("OpenVINO GenAI", "openvino", f"{tokens} tokens per step", "openvino/int4", options)


def _headrace(tokens: int | None = None) -> Server:
    options = () if tokens is None else ("--policy", f"sarathi:tokens={tokens}")
    label = "" if tokens is None else f"{tokens} tokens per step"
    return Server("headrace", HEADRACE, label, options=(*HEADRACE_FLAGS["int4"], *options))


SERVERS: tuple[Server, ...] = (
    _headrace(),
    *(_headrace(tokens) for tokens in (64, 128)),
    *(_llama("Q4_0", True, batch) for batch in (2048, 128)),
    *(_llama("Q4_K_M", False, batch) for batch in (2048, 128)),
    *(_openvino(tokens) for tokens in (256, 512, 128)),
)
"""An engine's default first. A smaller batch stalls the others' answers less, and runs prompts slower."""


def take_turn(server: Server, of: Load, seed: int) -> tuple[dict[str, Any], list[load.Seen]]:
    """The row of what its clients saw, and every request. Raises Failed."""
    warm, asks = of.asks(seed)
    with _running(server, of) as (url, process):
        _ask(url, warm, of)
        seen = _ask(url, asks, of)
        peak = _peak_rss_bytes(process)
    row = load.summarise(seen, ttft_s=TTFT_S, itl_s=ITL_S)
    wrong = [one.error or f"{one.pieces[-1][1]} tokens" for one in seen if _wrong(one, of)]
    if wrong:
        raise Failed(f"{len(wrong)} of {len(seen)} requests went wrong, the first: {wrong[0]}")
    return {**row, "peak_rss_bytes": peak}, seen


def _wrong(one: load.Seen, of: Load) -> bool:
    return bool(one.error) or not one.pieces or one.pieces[-1][1] != of.gen_len


def _ask(url: str, asks: Sequence[load.Ask], of: Load) -> list[load.Seen]:
    running = load.run(url, asks, clients=of.clients, key="", timeout=of.timeout_s, done=lambda: None)
    return asyncio.run(asyncio.wait_for(running, of.timeout_s))


@contextlib.contextmanager
def _running(server: Server, of: Load) -> Iterator[tuple[str, int]]:
    """The server's address and process, until the block ends."""
    port = _free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": str(of.threads)}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            server.command(of, port),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(url, process, log, of)
            yield url, process.pid
        except (TimeoutError, OSError) as error:
            raise Failed(f"{type(error).__name__}; last line: {_last(log, of)}") from None
        finally:
            _end(process)


def _wait(url: str, process: subprocess.Popen[bytes], log: TextIO, of: Load) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise Failed(_last(log, of, process.returncode), process.returncode)
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/v1/models", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise Failed(f"not ready after {START_S:.0f} s")


def _last(log: TextIO, of: Load, code: int = 1) -> str:
    log.seek(0)
    return reason(code, log.read(), of.envs)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with what it started: it leads a session of its own
    process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _peak_rss_bytes(leader: int) -> int:
    """Most memory that the processes of a session have held, each at its own time."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(folder.name)) == leader:
                lines = (folder / "status").read_text().splitlines()
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return total
