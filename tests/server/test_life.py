"""Health, metrics, cancelling, and what happens when processes die."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import httpx2
import pytest

from headrace import LLM
from tests.server.running import Server, metric, serving, until

LONG = {"prompt": "def f():\n", "max_tokens": 1900, "ignore_eos": True, "temperature": 0}


def gauge(client: httpx2.Client, name: str, **labels: str) -> float:
    return metric(client.get("/metrics").text, name, **labels)


def test_health(server: Server) -> None:
    with server.client() as client:
        for path in ("/health", "/health/live", "/health/ready", "/ping"):
            assert client.get(path).status_code == 200
        assert gauge(client, "headrace_steps_total") > 0, "no step was run"


def test_metrics_under_both_names(server: Server) -> None:
    with server.client() as client:
        client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 3, "ignore_eos": True})
        text = client.get("/metrics").text
    for ours, theirs in (
        ("headrace_generation_tokens_total", "vllm:generation_tokens_total"),
        ("headrace_prompt_tokens_total", "vllm:prompt_tokens_total"),
        ("headrace_kv_usage_ratio", "vllm:kv_cache_usage_perc"),
        ("headrace_ttft_seconds_count", "vllm:time_to_first_token_seconds_count"),
        ("headrace_itl_seconds_sum", "vllm:inter_token_latency_seconds_sum"),
    ):
        assert metric(text, ours, model_name="tiny-draft") == metric(text, theirs, model_name="tiny-draft")
    assert metric(text, "vllm:request_success_total", finished_reason="length") > 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels(server: Server, stream: bool) -> None:
    with server.client() as client:
        before = gauge(client, "headrace_requests_ended_total", outcome="cancelled")
        with httpx2.Client(base_url=server.url, timeout=0.3 if not stream else 60) as leaving:
            if stream:
                with leaving.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer:
                    next(answer.iter_lines())
            else:
                with pytest.raises(httpx2.ReadTimeout):
                    leaving.post("/v1/completions", json=LONG)
        until(
            lambda: gauge(client, "headrace_requests_ended_total", outcome="cancelled") == before + 1,
            "the request is counted as cancelled",
        )
        until(lambda: gauge(client, "headrace_kv_usage_ratio") == 0, "the pages are free")


def test_an_engine_that_dies(llm: LLM) -> None:
    """Its streams end with an error event; what had not run is run by the next engine; nothing is lost."""
    [want] = llm.generate("import os\n", llm.sampling(temperature=0, max_tokens=12))
    flags = ("--model", "tiny-draft", "--threads", "1", "--max-seqs", "1")
    with serving(*flags) as server, server.client() as client:
        answers: list[httpx2.Response] = []
        waiting = threading.Thread(
            target=lambda: answers.append(
                client.post(
                    "/v1/completions", json={"prompt": "import os\n", "temperature": 0, "max_tokens": 12}
                )
            )
        )
        engine = server.engine()
        with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            waiting.start()
            until(lambda: gauge(client, "headrace_requests_waiting") == 1, "the second request waits")
            os.kill(engine, signal.SIGKILL)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        error = json.loads(rest[-2].removeprefix("data: "))["error"]
        assert error["code"] == "engine_dead" and "signal 9" in error["message"]
        waiting.join(60)
        assert answers[0].status_code == 200 and answers[0].json()["choices"][0]["text"] == want.text
        assert client.get("/health").status_code == 200 and server.engine() != engine
        text = client.get("/metrics").text
        outcomes = {
            o: metric(text, "headrace_requests_ended_total", outcome=o) for o in ("completed", "failed")
        }
        assert outcomes == {"completed": 1, "failed": 1}


def test_while_there_is_no_engine_clients_hear_why(llm: LLM) -> None:
    with serving("--model", "tiny-draft", "--threads", "1") as server, server.client() as client:
        os.kill(server.engine(), signal.SIGKILL)
        until(lambda: client.get("/health").status_code == 503, "health says that the engine is gone")
        answer = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert "signal 9" in answer.json()["error"]["message"]
        until(lambda: client.get("/health").status_code == 200, "the engine is back")


def test_an_engine_whose_server_is_gone_ends() -> None:
    with serving("--model", "tiny-draft", "--threads", "1") as server:
        engine = server.engine()
        server.process.kill()
        server.process.wait()
        until(lambda: not Path(f"/proc/{engine}").exists() or _is_zombie(engine), "the engine ends", 10)


def _is_zombie(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_full_queue_is_429() -> None:
    flags = ("--model", "tiny-draft", "--threads", "1", "--max-seqs", "1", "--max-waiting", "1")
    with serving(*flags) as server, server.client() as client:
        with client.stream(
            "POST", "/v1/completions", json={**LONG, "n": 2, "temperature": 1, "stream": True}
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            answer = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
            assert answer.status_code == 429 and answer.json()["error"]["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) > 0
            answer = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, "n": 3})
            assert answer.status_code == 400 and "takes 2 at a time" in answer.text, "there is never room"
        until(
            lambda: client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200,
            "there is room again",
        )


def test_a_signal_drains() -> None:
    """What runs may finish, new requests hear 503, and the exit code is 0."""
    with serving("--model", "tiny-draft", "--threads", "1") as server, server.client() as client:
        body = {**LONG, "max_tokens": 1900, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: "may finish" in server.log.read_text(), "it says that it drains")
            answer = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "shutting_down"
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(20) == 0


def test_a_second_signal_ends_at_once() -> None:
    with serving("--model", "tiny-draft", "--threads", "1") as server, server.client() as client:
        with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGINT)
            until(lambda: "may finish" in server.log.read_text(), "it says that it drains")
            server.process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line]
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "engine_unavailable"
        assert server.process.wait(20) == 0
