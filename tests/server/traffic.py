"""Clients for tests of faults: streams that are followed event by event, and connections that misbehave."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tests.server.running import Server, metric

OUTCOMES = ("completed", "cancelled", "rejected", "failed")


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.01)


@dataclass
class Stream:
    """One streamed completion, followed in a thread of its own."""

    server: Server
    body: dict[str, Any]
    text: str = ""
    pieces: int = 0
    """Events with text that have come."""
    status: int = 0
    error: dict[str, Any] | None = None
    done: bool = False
    """[DONE] was the last thing that came."""
    broken: str = ""
    """What went wrong with the connection."""
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            with self.server.client() as client:
                with client.stream("POST", "/v1/completions", json={**self.body, "stream": True}) as answer:
                    self.status = answer.status_code
                    if self.status != 200:
                        self.error = json.loads(answer.read())["error"]
                        return
                    for line in filter(None, answer.iter_lines()):
                        self._take(line)
        except httpx2.HTTPError as error:
            self.broken = repr(error)

    def _take(self, line: str) -> None:
        assert not self.done, "something came after [DONE]"
        if line.startswith(":"):
            return
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            self.done = True
            return
        event = json.loads(data)
        if "error" in event:
            self.error = event["error"]
            return
        self.text += event["choices"][0]["text"]
        self.pieces += 1

    def join(self) -> Stream:
        self.thread.join(120)
        assert not self.thread.is_alive(), "a stream that never ends"
        return self

    @property
    def outcome(self) -> str:
        """As the server should count it."""
        self.join()
        if self.status != 200:
            return "rejected"
        assert self.done and not self.broken, self.broken
        return "completed" if self.error is None else "failed"


def completion(server: Server, body: dict[str, Any]) -> str:
    """The whole answer at once."""
    with server.client() as client:
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])


def ledger(server: Server) -> dict[str, int]:
    """Requests by how they ended, as the server counts them."""
    with server.client() as client:
        text = client.get("/metrics").text
    return {o: int(metric(text, "headrace_requests_ended_total", outcome=o)) for o in OUTCOMES}


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in before if after[name] != before[name]}


def idle(server: Server) -> bool:
    """Nothing runs or waits, and no page is in use."""
    with server.client() as client:
        text = client.get("/metrics").text
    names = ("requests_running", "requests_waiting", "kv_usage_ratio")
    return all(metric(text, f"headrace_{name}") == 0 for name in names)


def resources(server: Server) -> dict[str, int]:
    """What a process could leak, of the API process and of the engine."""
    found = {}
    for name, process in (("api", server.process.pid), ("engine", server.engine())):
        place = Path(f"/proc/{process}")
        found[f"{name} files"] = len(list((place / "fd").iterdir()))
        found[f"{name} threads"] = len(list((place / "task").iterdir()))
        children = [(task / "children").read_text().split() for task in (place / "task").iterdir()]
        found[f"{name} children"] = sum(map(len, children))
    return found


def rss(process: int) -> int:
    """Bytes of memory that a process holds."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) << 10


def settled(server: Server, before: dict[str, int], seconds: float = 30) -> None:
    """Waits until everything is as it was before, or less."""
    until(lambda: idle(server), "nothing runs, no page is in use", seconds)
    end = time.monotonic() + seconds
    while True:
        now = resources(server)
        if all(now[name] <= count for name, count in before.items()):
            return
        assert time.monotonic() < end, f"before {before}, now {now}"
        time.sleep(0.05)


def head(body: bytes, *lines: str, path: str = "/v1/completions") -> bytes:
    """Request line and headers for a body."""
    fields = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*fields, f"Content-Length: {len(body)}", *lines, "", ""]).encode()


def connect(server: Server, *, receive_buffer: int = 0, timeout: float = 60) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(timeout)
    sock.connect((host, int(port)))
    return sock


def exchange(server: Server, data: bytes, timeout: float = 60) -> bytes:
    """What comes back for raw bytes, until the server closes or says nothing for a moment after an answer."""
    with closing(connect(server, timeout=timeout)) as sock:
        found = b""
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(1 << 16):
                found += piece
        except (ConnectionError, TimeoutError):
            pass
        return found


def reset(sock: socket.socket) -> None:
    """Closes with RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def lines_of(sock: socket.socket) -> Iterator[bytes]:
    """Non-empty lines of an answer, chunk sizes included."""
    rest = b""
    while piece := sock.recv(1 << 14):
        *lines, rest = (rest + piece).split(b"\n")
        yield from filter(None, (line.strip() for line in lines))


def prompts(count: int) -> Sequence[str]:
    """Different ones, of different lengths."""
    return [f"def f{i}(x):\n    return x + {i}\n" * (1 + i % 5) for i in range(count)]
