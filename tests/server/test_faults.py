"""Faults of processes: whatever dies, hangs or is told to stop, nothing is lost, nothing runs twice, nothing leaks."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from tests.server.running import Server, serving
from tests.server.traffic import (
    Stream,
    completion,
    connect,
    grown,
    head,
    idle,
    ledger,
    prompts,
    resources,
    settled,
    until,
)

FLAGS = ("--model", "tiny-draft", "--threads", "1", "--max-seqs", "4")
PATIENT = {"client.MOST_DEATHS": 1000, "client.FIRST_PAUSE_S": 0.05, "client.LONGEST_PAUSE_S": 0.05}
"""Constants of a server whose engine may die as often as it likes."""


def body(prompt: str, tokens: int = 250) -> dict[str, object]:
    return {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}


def health(server: Server) -> int:
    with server.client() as client:
        return client.get("/health").status_code


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_an_engine_that_is_killed_under_load(rounds: int) -> None:
    chosen = random.Random(rounds)
    with serving(*FLAGS, constants=PATIENT) as server:
        asked = prompts(8)
        want = {prompt: completion(server, body(prompt)) for prompt in asked}
        counted, log, before = ledger(server), Counter[str](), None
        for _ in range(rounds):
            engine = server.engine()
            streams = [Stream(server, body(prompt)) for prompt in asked]
            _when(streams, chosen.randrange(1, 600))
            os.kill(engine, signal.SIGKILL)
            until(lambda: health(server) == 503, "health says that the engine is gone", 10)
            log.update(_check_outcomes(streams, want))
            until(lambda: health(server) == 200, "the engine is back")
            assert server.engine() != engine
            before = before or resources(server)  # the first death leaves a thread that waits for processes
        settled(server, before or {})
        assert grown(counted, ledger(server)) == dict(log) and log.total() == 8 * rounds


def _when(streams: list[Stream], moment: int) -> None:
    until(lambda: sum(stream.pieces for stream in streams) >= moment, f"{moment} events have come")


def _check_outcomes(streams: list[Stream], want: dict[str, str]) -> list[str]:
    """What ran has failed, what waited has completed; every text is the right one, or its beginning."""
    for stream in streams:
        text = want[str(stream.body["prompt"])]
        if stream.outcome == "failed":
            assert stream.error is not None and stream.error["code"] == "engine_dead"
            assert text.startswith(stream.text)
        else:
            assert stream.outcome == "completed" and stream.text == text
    outcomes = [stream.outcome for stream in streams]
    assert 1 <= outcomes.count("failed") <= 4, "only what ran may be lost"
    return outcomes


def test_an_engine_that_hangs_is_killed() -> None:
    constants = {**PATIENT, "health.FRESH_S": 1.0, "client.STUCK_S": 4.0}
    with serving(*FLAGS, constants=constants) as server:
        asked = prompts(5)
        want = completion(server, body(asked[4], 20))
        engine = server.engine()
        running = [Stream(server, body(prompt, 1000)) for prompt in asked[:4]]
        until(lambda: all(stream.pieces for stream in running), "four streams run")
        os.kill(engine, signal.SIGSTOP)
        waiting = Stream(server, body(asked[4], 20))
        with server.client() as client:
            until(lambda: client.get("/health").status_code == 503, "health says that it is stuck", 10)
            assert client.get("/health/ready").json()["error"]["code"] == "engine_stuck"
            assert client.get("/health/live").status_code == 200
        for stream in running:
            assert stream.outcome == "failed" and stream.error is not None
            assert stream.error["code"] == "engine_dead" and "no sign of life" in stream.error["message"]
        assert waiting.outcome == "completed" and waiting.text == want
        assert server.engine() != engine
        until(lambda: health(server) == 200, "the engine is back")


@pytest.mark.slow
def test_an_idle_engine_that_hangs_is_found_by_asking() -> None:
    constants = {**PATIENT, "health.FRESH_S": 0.5, "health.PROBE_S": 0.5, "client.STUCK_S": 3.0}
    with serving(*FLAGS, constants=constants) as server, server.client() as client:
        engine = server.engine()
        os.kill(engine, signal.SIGSTOP)
        until(lambda: client.get("/health").status_code == 503, "health says that it is stuck", 10)
        until(lambda: client.get("/health").status_code == 200, "another engine runs")
        assert server.engine() != engine


def test_a_server_that_is_killed_leaves_nothing_behind() -> None:
    with serving(*FLAGS) as server:
        with server.client() as client:  # the process of templates runs as well
            messages = [{"role": "user", "content": "a"}]
            assert client.post("/v1/chat/completions", json={"messages": messages}).status_code == 200
        streams = [Stream(server, body(prompt, 1500)) for prompt in prompts(4)]
        until(lambda: all(stream.pieces for stream in streams), "streams run")
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        assert len(children) == 2
        server.process.kill()
        server.process.wait()
        until(lambda: not any(map(_alive, children)), "its processes end", 5)
        for stream in streams:
            assert stream.join().broken, "a killed server's stream ends without [DONE]"
        port = server.url.rpartition(":")[2]
        with serving(*FLAGS, "--port", port) as again:
            assert again.url == server.url and completion(again, body("a", 2))


def _alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_under_load_drains(number: int) -> None:
    with serving(*FLAGS) as server:
        asked = prompts(8)
        want = [completion(server, body(prompt, 150)) for prompt in asked]
        streams = [Stream(server, body(prompt, 150)) for prompt in asked]
        until(lambda: all(stream.status for stream in streams), "all are under way, or wait for their turn")
        server.process.send_signal(number)
        until(lambda: "may finish" in server.log.read_text(), "it says that it drains")
        late = Stream(server, body("late"))
        assert [stream.outcome for stream in streams] == ["completed"] * 8
        assert [stream.text for stream in streams] == want
        assert late.join().status == 503 or late.broken  # broken: all had finished before it came
        assert server.process.wait(30) == 0


@pytest.mark.slow
def test_what_does_not_finish_in_time_hears_why() -> None:
    with serving(*FLAGS, constants={"run.DRAIN_S": 0.5}) as server:
        streams = [Stream(server, {**body(prompt, 1500), "n": 1}) for prompt in prompts(8)]
        until(lambda: sum(stream.pieces for stream in streams) > 20, "streams run, others wait")
        server.process.send_signal(signal.SIGTERM)
        for stream in streams:
            assert stream.outcome == "failed" and stream.error is not None
            assert "shutting down" in stream.error["message"]
        assert server.process.wait(30) == 0


@pytest.mark.slow
def test_a_full_disk_under_its_log_stops_nothing() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "headrace", "serve", "--port", str(port), *FLAGS]
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(command, stdout=full, stderr=full)
    try:
        server = Server(process, Path("/dev/null"), f"http://127.0.0.1:{port}")
        until(lambda: _reachable(server), "it serves")
        engine = server.engine()
        os.kill(engine, signal.SIGKILL)  # so that there is something to log
        until(lambda: health(server) == 503, "the engine is gone")
        until(lambda: health(server) == 200, "the engine is back")
        assert completion(server, body("a", 5))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _reachable(server: Server) -> bool:
    try:
        return health(server) == 200
    except httpx2.HTTPError:
        return False


# ---- readers that stop ----

BIG = {"prompt": "def f():\n", "max_tokens": 400, "ignore_eos": True, "n": 4, "seed": 1, "logprobs": 20}


def test_a_reader_that_stops_is_paused_then_cut_off() -> None:
    constants = {"connection.STALL_S": 3.0, "client.MOST_UNREAD": 64, "client.FEW_UNREAD": 16}
    with serving(*FLAGS, constants=constants) as server:
        want = completion(server, body("import os\n", 50))
        before, counted = resources(server), ledger(server)
        data = json.dumps({**BIG, "stream": True}).encode()
        sock = connect(server, receive_buffer=4096)
        sock.sendall(head(data) + data)
        until(lambda: _counts(server) == (0, 4), "its samples are paused")
        assert completion(server, body("import os\n", 50)) == want
        until(lambda: idle(server), "it is let go")
        assert grown(counted, ledger(server)) == {"cancelled": 1, "completed": 1}
        settled(server, before)  # while the client still holds its end
        sock.close()


@pytest.mark.slow
def test_a_reader_that_goes_on_gets_the_same() -> None:
    constants = {"client.MOST_UNREAD": 64, "client.FEW_UNREAD": 16}
    with serving(*FLAGS, constants=constants) as server:
        data = json.dumps({**BIG, "stream": True}).encode()
        with connect(server) as sock:
            sock.sendall(head(data, "Connection: close") + data)
            want = _events(sock)
        with connect(server, receive_buffer=4096) as sock:
            sock.sendall(head(data, "Connection: close") + data)
            until(lambda: _counts(server) == (0, 4), "its samples are paused")
            found = _events(sock)
        assert len(want) == 1600 and sorted(found) == sorted(want)
        until(lambda: idle(server), "nothing is left")


def _counts(server: Server) -> tuple[int, int]:
    """Sequences that run, and that wait."""
    from tests.server.running import metric

    with server.client() as client:
        text = client.get("/metrics").text
    return int(metric(text, "headrace_requests_running")), int(metric(text, "headrace_requests_waiting"))


def _events(sock: socket.socket) -> list[str]:
    """(sample, place in it, what came) of every event of a stream, as text."""
    data = b""
    while piece := sock.recv(1 << 20):
        data += piece
    lines = [line for line in data.split(b"\r\n") if line.startswith(b"data: {")]
    found, seen = [], Counter[int]()
    for line in lines:
        [choice] = json.loads(line.removeprefix(b"data: "))["choices"]
        seen[choice["index"]] += 1
        found.append(json.dumps([choice["index"], seen[choice["index"]], choice]))
    assert data.rstrip().endswith(b"0") and b"data: [DONE]" in data
    return found


def test_every_client_that_leaves_at_once_is_counted() -> None:
    """After the headers, or an event or two: each has an end, and the engine goes on with none of them."""
    body = {"prompt": "import os\n", "max_tokens": 200, "temperature": 0, "ignore_eos": True, "stream": True}

    def leave(server: Server, number: int) -> None:
        chosen = random.Random(number)
        with server.client() as client:
            for _ in range(60):
                with client.stream("POST", "/v1/completions", json=body) as answer:
                    lines = answer.iter_lines()
                    for _ in range(chosen.randrange(3)):
                        next(lines, None)

    with serving("--model", "tiny-draft", "--threads", "1", "--max-seqs", "8") as server:
        counted = ledger(server)
        threads = [threading.Thread(target=leave, args=(server, number)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        until(lambda: idle(server), "nothing runs, no page is in use")
        until(lambda: sum(grown(counted, ledger(server)).values()) >= 360, "all are counted", 20)
        assert sum(grown(counted, ledger(server)).values()) == 360
