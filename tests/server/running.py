"""A server process for tests: `headrace serve` as a user starts it, on a free port."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

START_S = 120
_MAIN = """
import importlib, json, sys
for name, value in json.loads(sys.argv.pop(1)).items():
    module, _, constant = name.rpartition(".")
    module = importlib.import_module("headrace.server." + module)
    assert hasattr(module, constant), name
    setattr(module, constant, value)
from headrace.cli import main
sys.exit(main())
"""


class Server:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, url: str) -> None:
        self.process, self.log, self.url = process, log, url

    def client(self, **options: object) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60, **options)  # type: ignore[arg-type]

    def engine(self) -> int:
        """Process id of the engine."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(
            int(child)
            for child in children
            if b"headrace.server.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
        )

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def metric(text: str, name: str, **labels: str) -> float:
    """The value of one sample in what /metrics answered."""
    for line in text.splitlines():
        match = re.fullmatch(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)", line)
        if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
            return float(match[2])
    raise AssertionError(f"no {name} {labels} in the metrics")


def until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.01)


@contextmanager
def serving(
    *flags: str,
    env: dict[str, str] | None = None,
    constants: dict[str, object] | None = None,
    stderr: Path | None = None,
) -> Iterator[Server]:
    """`headrace serve FLAGS`, until the block ends. What it logs is in `Server.log`.

    constants: values in its API process, {"client.STUCK_S": 1.0}, of modules of headrace.server. stderr: its own file.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-c", _MAIN, json.dumps(constants or {}), "serve", "--port", "0", *flags]
        with log.open("wb") as out, (stderr or log).open("ab") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **(env or {})})
        try:
            yield Server(process, log, _url(process, log))
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        match = re.search(r"on (http://\S+?)/v1", log.read_text())
        if match:
            return match[1]
        time.sleep(0.02)
    raise AssertionError(f"the server did not start: {log.read_text()}")
