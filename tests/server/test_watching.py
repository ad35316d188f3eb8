"""What an operator sees: lines of the log, spans, metrics; and that a log which cannot be written stops nothing."""

from __future__ import annotations

import http.server
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from headrace.errors import ConfigError
from headrace.server import run
from headrace.server.journal import Journal
from headrace.server.record import Record
from headrace.server.traces import Tracer
from headrace.stats import Counters, Stats
from tests.server.running import Server, metric, serving, until

SECRET, KEY = "xylophone quartz", "a-key-nobody-logs"
BODY = {"prompt": SECRET, "max_tokens": 5, "ignore_eos": True, "temperature": 0}
LONG = {"prompt": "def f():\n", "max_tokens": 1900, "n": 8, "ignore_eos": True, "stream": True}
"""More than what lies between a server and a client holds: it cannot have ended before the client leaves."""
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector:
    """Takes OTLP over HTTP, as a collector of OpenTelemetry does."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                import gzip

                from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

                data = self.rfile.read(int(self.headers["content-length"]))
                data = gzip.decompress(data) if self.headers["content-encoding"] == "gzip" else data
                request = ExportTraceServiceRequest.FromString(data)
                assert self.path == "/v1/traces"
                collector.spans += [s for r in request.resource_spans for c in r.scope_spans for s in c.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def listening(self) -> Iterator[Collector]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        yield self
        self._server.shutdown()
        thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def watched() -> Iterator[tuple[Server, Collector]]:
    """A server that logs JSON and sends spans. Spans are sent at once, not every five seconds."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")
    with Collector().listening() as collector:
        flags = ("--log-json", "--otlp-traces-endpoint", collector.url, "--api-key", KEY)
        env = {"OTEL_BSP_SCHEDULE_DELAY": "50"}
        with serving("--model", "tiny-draft", "--threads", "1", *flags, env=env) as server:
            yield server, collector


def client_of(server: Server) -> httpx2.Client:
    return server.client(headers={"Authorization": f"Bearer {KEY}"})


def lines(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.read_text().splitlines()]


def line_of(server: Server, request: str) -> dict[str, Any]:
    """The line of a request, once it is there."""

    def found() -> list[dict[str, Any]]:
        return [line for line in lines(server) if line.get("request_id") == request]

    until(lambda: bool(found()), f"a line of {request}")
    [line] = found()
    return line


def test_a_request_is_a_line_of_json(watched: tuple[Server, Collector]) -> None:
    server, _ = watched
    with client_of(server) as client:
        client.post("/v1/completions", json=BODY, headers={"X-Request-Id": "whole"})
        client.post("/v1/completions", json=BODY | {"model": "nobody"}, headers={"X-Request-Id": "refused"})
        client.get("/metrics", headers={"X-Request-Id": "probe"})
        client.get("/nowhere%0Aelse", headers={"X-Request-Id": "nowhere"})
        client.post("/v1/completions", json=BODY, headers={"X-Request-Id": "keyless", "Authorization": ""})
    line = line_of(server, "whole")
    assert line.pop("time").endswith("Z") and 0 < line.pop("queue_s") <= line.pop("ttft_s") <= line.pop(
        "total_s"
    )
    assert line == {
        "level": "info", "event": "request", "request_id": "whole", "method": "POST", "path": "/v1/completions",
        "status": 200, "outcome": "completed", "response_id": "cmpl-whole", "model": "tiny-draft",
        "prompt_tokens": line["prompt_tokens"], "completion_tokens": 5,
        "cached_tokens": 0,
    }  # fmt: skip
    assert line_of(server, "refused")["outcome"] == "rejected" and line_of(server, "refused")["status"] == 404
    assert line_of(server, "nowhere")["status"] == 404
    assert line_of(server, "keyless")["status"] == 401
    assert not [line for line in lines(server) if line.get("request_id") == "probe"]
    assert {"engine", "serving"} <= {line["event"] for line in lines(server)}
    text = server.log.read_text()
    assert SECRET not in text and KEY not in text


def test_what_ends_early_is_a_line(watched: tuple[Server, Collector]) -> None:
    """Cancelled at info, failed as a warning; the engine's own words are JSON as well."""
    server, collector = watched
    with client_of(server) as client:
        with client.stream("POST", "/v1/completions", json=LONG, headers={"X-Request-Id": "left"}) as answer:
            next(answer.iter_lines())
        left = line_of(server, "left")
        assert (left["outcome"], left["level"], left["status"]) == ("cancelled", "info", 200)
        with client.stream("POST", "/v1/completions", json=LONG, headers={"X-Request-Id": "lost"}) as answer:
            rows = answer.iter_lines()
            next(rows)
            os.kill(server.engine(), signal.SIGKILL)
            assert "engine_dead" in "".join(rows)
        lost = line_of(server, "lost")
        assert (lost["outcome"], lost["level"]) == ("failed", "warning") and lost["completion_tokens"] > 0
        until(lambda: client.get("/health").status_code == 200, "the engine is back")
    died = [line for line in lines(server) if line["event"] == "log"]
    assert any("signal 9" in line["message"] and line["level"] == "error" for line in died)
    until(lambda: any(attributes(s)["headrace.request_id"] == "lost" for s in collector.spans), "its span")
    [span] = [s for s in collector.spans if attributes(s)["headrace.request_id"] == "lost"]
    assert span.status.code == 2, "a span of what failed says so"


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_spans(watched: tuple[Server, Collector]) -> None:
    server, collector = watched
    headers = {
        "X-Request-Id": "traced",
        "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
        "tracestate": "a=b",
    }
    with client_of(server) as client:
        client.post(
            "/v1/completions", json=BODY | {"temperature": 0.5, "n": 2, "top_p": 0.9}, headers=headers
        )
        client.get("/v1/models")
        until(lambda: any(span.trace_id.hex() == TRACE for span in collector.spans), "the span comes")
    [span] = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    assert span.name == "llm_request" and span.parent_span_id.hex() == "b7ad6b7169203331"
    assert span.trace_state == "a=b" and span.kind == 2  # a server's
    found = attributes(span)
    times = [found.pop(f"gen_ai.latency.{name}") for name in ("time_in_queue", "time_to_first_token", "e2e")]
    assert 0 < times[0] <= times[1] <= times[2]
    assert (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 == pytest.approx(times[2], abs=1e-6)
    assert found.pop("gen_ai.usage.prompt_tokens") > 0
    assert found == {
        "gen_ai.request.id": "cmpl-traced",
        "gen_ai.response.model": "tiny-draft",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.n": 2,
        "gen_ai.usage.completion_tokens": 10,
        "gen_ai.usage.num_sequences": 2,
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "headrace.request_id": "traced",
        "headrace.outcome": "completed",
    }
    assert {s.name for s in collector.spans} == {"llm_request"}
    assert SECRET not in "".join(map(str, collector.spans))


def test_opentelemetry_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigError, match=r"pip install 'headrace\[otel\]'"):
        Tracer("http://127.0.0.1:4318")
    with pytest.raises(ConfigError, match="is no URL"):
        Tracer("127.0.0.1:4318")


def test_opentelemetry_is_not_imported_when_off() -> None:
    code = "import sys, headrace.server.run; assert not [m for m in sys.modules if m.startswith('opentelemetry.sdk')]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_metrics_of_phases_and_http(server: Server) -> None:
    with server.client() as client:
        client.post("/v1/completions", json=BODY | {"max_tokens": 7})
        client.get("/nowhere")
        client.request("MADEUP", "/v1/models")
        text = client.get("/metrics").text
    for name in ("queue_time", "prefill_time", "decode_time", "inference_time", "time_per_output_token"):
        count = metric(text, f"vllm:request_{name}_seconds_count", model_name="tiny-draft")
        assert count > 0 and metric(text, f"vllm:request_{name}_seconds_sum") > 0, name
    phases = [
        metric(text, f"headrace_request_{name}_seconds_sum") for name in ("prefill", "decode", "inference")
    ]
    assert phases[0] + phases[1] == pytest.approx(phases[2])
    assert (
        metric(text, "vllm:request_params_max_tokens_count") > 0 < metric(text, "vllm:request_params_n_sum")
    )
    info = {"block_size": "16", "enable_prefix_caching": "True"}
    assert metric(text, "vllm:cache_config_info", **info) == 1
    labels = {"handler": "/v1/completions", "method": "POST"}
    assert metric(text, "http_requests_total", **labels, status="2xx") > 0
    assert metric(text, "http_request_duration_seconds_count", **labels) > 0
    assert metric(text, "http_requests_total", handler="none", method="GET", status="4xx") > 0
    assert metric(text, "http_requests_total", method="other", status="4xx") > 0 and "MADEUP" not in text
    for prefix in ("", "headrace_engine_"):
        assert metric(text, f"{prefix}process_resident_memory_bytes") > 10 << 20
        assert metric(text, f"{prefix}process_threads") > 0 < metric(text, f"{prefix}process_open_fds")
    assert metric(text, "headrace_log_lines_lost_total") == 0


def test_a_full_disk_stops_nothing() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "headrace",
        "serve",
        "--model",
        "tiny-draft",
        "--threads",
        "1",
        "--log-json",
    ]
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen([*command, "--port", str(port)], stderr=full)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

            def healthy() -> bool:
                assert process.poll() is None, "the server ended"
                try:
                    return client.get("/health").status_code == 200
                except httpx2.ConnectError:
                    return False

            until(healthy, "it serves", 120)
            for _ in range(3):
                assert client.post("/v1/completions", json=BODY).status_code == 200
            lost = "headrace_log_lines_lost_total"
            until(lambda: metric(client.get("/metrics").text, lost) >= 3, "lost lines are counted")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_a_reader_that_does_not_keep_up_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.server.journal.MAX_LINES", 2)
    go, written = threading.Event(), []

    def write(line: str) -> None:
        go.wait(30)
        written.append(line)

    journal = Journal(write)
    with journal.instead_of_stderr():
        for number in range(10):
            journal.say("counted", str(number))
        assert 7 <= journal.lost <= 8  # the thread may have one in its hands
        go.set()
        until(lambda: len(written) == 10 - journal.lost, "the others are written")


def test_lines_for_people() -> None:
    written: list[str] = []
    journal = Journal(written.append, requests=True, quiet=True)
    with journal.instead_of_stderr():
        journal.say("serving", "nobody wants to know")
        journal.request(Record("req-1", "GET", "/a\nb", status=404))
        journal.request(Record("req-2", "GET", "/metrics", status=200))
        logging.getLogger("headrace.test").warning("so %s", "it is")
        logging.getLogger("headrace.test").info("not this")
    assert written == ["req-1 GET /a\\nb 404 rejected after 0.000 s", "so it is"]


def test_a_busy_engine_has_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(run.time, "monotonic", lambda: now)
    told: list[dict[str, Any]] = []
    journal = SimpleNamespace(say=lambda event, text, **fields: told.append(fields))
    client = SimpleNamespace(view=None)
    stat = run.Stat(client, journal)

    def after(seconds: float, **counters: int) -> None:
        nonlocal now
        now += seconds
        if counters:
            stats = Stats(2, 1, 0, 100, 50, 25, Counters(**counters))
            client.view = SimpleNamespace(stats=stats)
        stat.tell()

    for _ in range(100):
        after(1)  # nothing has run yet
    assert told == []
    after(5, steps=3, prompt_tokens=50, cached_tokens=10, generated_tokens=100)
    assert told == []
    after(5)
    [line] = told
    assert line == {
        "prompt_tokens_per_s": 5.0, "cached_ratio": 0.2, "generated_tokens_per_s": 10.0, "running": 2, "waiting": 1,
        "kv_usage": 0.25,
    }  # fmt: skip
    for _ in range(100):
        after(1)
    assert len(told) == 1, "an idle engine has nothing to say"
    after(10, steps=2, generated_tokens=20)  # another engine, which counts from 0
    assert told[1]["generated_tokens_per_s"] == 2.0
