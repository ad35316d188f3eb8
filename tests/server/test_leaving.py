"""Clients that leave at any moment, in any way, and clients that keep the server waiting: nobody else notices."""

from __future__ import annotations

import itertools
import json
import random
import socket
import time
from contextlib import ExitStack, suppress

import pytest

from tests.server.running import Server, serving
from tests.server.traffic import (
    Stream,
    completion,
    connect,
    exchange,
    grown,
    head,
    idle,
    ledger,
    lines_of,
    prompts,
    reset,
    resources,
    settled,
    until,
)

POINTS = ("in the headers", "in the body", "prefill", "first token", "middle", "last token")
WAYS = ("close", "reset", "half-close")


def leave(server: Server, point: str, way: str, stream: bool, chosen: random.Random) -> None:
    """One client that goes away."""
    prompt = "x = 1\n" * (200 if point == "prefill" else 1 + chosen.randrange(20))
    tokens = 12 if point == "last token" else 600
    body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": stream}
    data = json.dumps(body).encode()
    before = head(data)
    sock = connect(server)
    if point == "in the headers":
        sock.sendall(before[: chosen.randrange(1, len(before) - 2)])
    elif point == "in the body":
        sock.sendall(before + data[: chosen.randrange(0, len(data))])
    else:
        sock.sendall(before + data)
        events = {"prefill": 0, "first token": 1, "middle": chosen.randrange(2, 100), "last token": 12}[point]
        if stream and events:
            found = (line for line in lines_of(sock) if line.startswith(b"data: {"))
            for _ in itertools.islice(found, events):
                pass
    if way == "reset":
        reset(sock)
    elif way == "close":
        sock.close()
    else:
        sock.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while sock.recv(1 << 16):
                pass
        sock.close()


@pytest.mark.parametrize("count", [36, pytest.param(216, marks=pytest.mark.slow)])
def test_clients_that_leave(server: Server, count: int) -> None:
    chosen = random.Random(count)
    asked = {"prompt": prompts(1)[0], "max_tokens": 60, "ignore_eos": True, "temperature": 0}
    want = completion(server, asked)
    until(lambda: idle(server), "it is idle")
    before, counted = resources(server), ledger(server)
    cases = list(itertools.islice(itertools.cycle(itertools.product(POINTS, WAYS, (True, False))), count))
    chosen.shuffle(cases)
    staying = 0
    for batch in (cases[i : i + 12] for i in range(0, count, 12)):
        others = Stream(server, asked)
        for case in batch:
            leave(server, *case, chosen)
        assert others.outcome == "completed" and others.text == want
        staying += 1
    settled(server, before)
    seen = sum(point != "in the headers" for point, _, _ in cases)
    found = grown(counted, ledger(server))
    assert set(found) <= {"completed", "cancelled"}, found
    assert sum(found.values()) == seen + staying, "every request whose headers came has one end"
    finished = staying + sum(point == "last token" for point, _, _ in cases)
    assert found["completed"] <= finished, "nobody's answer is computed after they left"
    assert b"Traceback" not in server.log.read_bytes()


# ---- clients that keep it waiting ----


def test_half_a_request_is_not_waited_for() -> None:
    constants = {"connection.HEADER_S": 1.0, "connection.REQUEST_S": 2.0}
    flags = ("--model", "tiny-draft", "--threads", "1")
    with serving(*flags, constants=constants) as server, ExitStack() as stack:
        before = resources(server)
        data = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
        silent, slow, half = (stack.enter_context(connect(server, timeout=30)) for _ in range(3))
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\n")
        half.sendall(head(data) + data[:5])
        again = stack.enter_context(connect(server))
        again.sendall(head(data) + data)
        again.settimeout(60)
        assert again.recv(12) == b"HTTP/1.1 200"
        again.sendall(b"GET /ver")  # half of a second request
        with suppress(ConnectionError):
            end = time.monotonic() + 30
            while time.monotonic() < end:  # a header that never ends, a line now and then
                slow.sendall(b"X-A: b\r\n")
                slow.settimeout(0.1)
                with suppress(TimeoutError):
                    if not slow.recv(1):
                        break
            assert time.monotonic() < end, "a line now and then gains time"
        for sock in (silent, half, again):
            with suppress(ConnectionError):
                while sock.recv(1 << 16):
                    pass
        settled(server, before)
        assert ledger(server)["cancelled"] == 1, "the request whose body never came"


@pytest.mark.slow
def test_more_connections_than_files() -> None:
    """Idle connections do not keep others out for longer than a header may take; who is one too many hears so."""
    constants = {"connection.HEADER_S": 4.0, "connection.SPARE_FILES": 20000}
    flags = ("--model", "tiny-draft", "--threads", "1")
    with serving(*flags, constants=constants) as server:  # so one connection at once
        before = resources(server)
        with connect(server) as first, connect(server) as second:
            second.settimeout(30)
            answer = second.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 503") and b"too_many_connections" in answer
            first.settimeout(30)
            with suppress(ConnectionError):
                assert first.recv(1) == b"", "cut off after a while"
        assert completion(server, {"prompt": "a", "max_tokens": 1}) is not None
        settled(server, before)


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_idle_connections_cost_nothing(server: Server, count: int) -> None:
    asked = {"prompt": "import os\n", "max_tokens": 30, "temperature": 0}
    want = completion(server, asked)
    until(lambda: idle(server), "it is idle")
    before = resources(server)
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(connect(server))
        assert completion(server, asked) == want
    settled(server, before)


POST = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + "Transfer-Encoding: chunked\r\n\r\n"
LIES = {
    "a chunk longer than it says": CHUNKED + '1\r\n{"prompt": "a"}\r\n0\r\n\r\n',
    "a chunk of no size": CHUNKED + "xyz\r\n{}\r\n0\r\n\r\n",
    "a negative chunk": CHUNKED + "-1\r\n{}\r\n0\r\n\r\n",
    "a chunk of 2^70": CHUNKED + "400000000000000000\r\n{}",
    "two lengths": POST + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "length and chunks": POST + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a negative length": POST + "Content-Length: -2\r\n\r\n{}",
    "an endless length": POST + "Content-Length: " + "9" * 30 + "\r\n\r\n{}",
    "no host": "GET /version HTTP/1.1\r\n\r\n",
    "no version": "GET /version\r\n\r\n",
    "another protocol": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a header without a name": "GET /version HTTP/1.1\r\nHost: localhost\r\n: x\r\n\r\n",
    "a header on two lines": "GET /version HTTP/1.1\r\nHost: localhost\r\nA: b\r\n c\r\n\r\nxx",
    "ten thousand headers": "GET /version HTTP/1.1\r\nHost: localhost\r\n" + "A: b\r\n" * 10_000 + "\r\n",
    "an upgrade": "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    "nothing": "",
    "rubbish behind a request": "GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n\x00\x01\x02\r\n\r\n",
}


@pytest.mark.parametrize("name", LIES)
def test_what_is_no_request(server: Server, name: str) -> None:
    found = exchange(server, LIES[name].encode("latin-1"))
    if found:
        status = int(found.split()[1])
        assert status in (200, 400, 403, 413, 431), found[:300]
        if status != 200:
            assert b'"error"' in found
    with server.client() as client:
        assert client.get("/version").status_code == 200
    assert b"Traceback" not in server.log.read_bytes()
