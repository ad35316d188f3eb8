"""Servers under load: what they are asked, how the best is found, and the little server around OpenVINO's pipeline."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import serve
from benchmarks.peers.roster import HEADRACE
from benchmarks.peers.servers import SERVERS, WARM_TOKENS, Load, Server
from headrace.server import load

OURS = Server("headrace", HEADRACE)
FAST, SLOW = Server("other", "other", "fast"), Server("other", "other", "slow")


@pytest.fixture
def of(tmp_path: Path) -> Load:
    return Load("llama-3.2-1b", 1000, 12, 4, 30, (10, 80), 8, 2, tmp_path, 60.0)


def test_every_prompt_has_the_shared_front_and_its_own_tokens(of: Load) -> None:
    warm, asks = of.asks(seed=1)
    assert len(warm) == 4 and len(asks) == 12
    assert len({ask.prompt[:30] for ask in (*warm, *asks)}) == 1
    assert all(40 <= len(ask.prompt) <= 110 and ask.max_tokens == 8 for ask in asks)
    assert all(ask.max_tokens == WARM_TOKENS for ask in warm)
    assert not {ask.prompt[30:40] for ask in warm} & {ask.prompt[30:40] for ask in asks}
    assert of.context >= 30 + 80 + 8


def test_every_server_can_be_started(of: Load) -> None:
    assert len({server.name for server in SERVERS}) == len(SERVERS)
    for server in SERVERS:
        command = server.command(of, 1234)
        assert "1234" in command and command[command.index("--threads") + 1] == "2"
        assert "--servers" in (server.missing(of) or "")


def _row(rate: float, stall: float) -> dict[str, float]:
    return {"requests_per_s": rate, "itl_p99_s": stall}


def test_the_verdict_is_against_the_peer_with_the_most_requests() -> None:
    results = serve.Results((OURS, FAST, SLOW))
    results.trials = {FAST: [_row(2.0, 1.0)], OURS: [_row(4.0, 0.5)]}
    results.failures[SLOW] = "it fell over"
    assert results.chosen() == [OURS, FAST]
    assert "nobody" in serve.verdict(results)
    results.rows = {OURS: [_row(4.0, 0.5)], FAST: [_row(2.0, 1.0)], SLOW: [_row(1.0, 0.1)]}
    assert "2.00x the requests per second, at 0.50x its p99" in serve.verdict(results)
    text = serve.document(results, ["header"])
    assert "| headrace | 4.000 |" in text and "**no result**: it fell over" in text


def test_a_failed_turn_ends_a_server_and_no_other(of: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def take_turn(server: Server, of: Load, seed: int) -> tuple[dict[str, float], list[load.Seen]]:
        taken.append((server, of.requests, seed))
        if server is FAST and seed:
            raise serve.Failed("gone")
        return _row({OURS: 4.0, FAST: 2.0, SLOW: 1.0}[server], 0.5), []

    monkeypatch.setattr(serve, "take_turn", take_turn)
    monkeypatch.setattr(serve, "read_limits", lambda case: {})
    monkeypatch.setattr(Server, "missing", lambda server, of: None)
    results = serve.Results((OURS, FAST, SLOW))
    path = of.envs / "out.md"
    serve.compare(of, results, ["header"], argparse.Namespace(trial=3, repeat=2), path)
    trials = [(OURS, 3, 0), (FAST, 3, 0), (SLOW, 3, 0)]
    assert taken == [*trials, (OURS, 12, 1), (FAST, 12, 1), (OURS, 12, 2)]
    assert "gone" in path.read_text() and path.with_suffix(".json").exists()


class _Handle:
    def __init__(self, tokens: int) -> None:
        self.left, self.unread = tokens, 0

    def can_read(self) -> bool:
        return self.unread > 0

    def read(self) -> dict[int, Any]:
        self.unread -= 1
        return {0: types.SimpleNamespace(generated_ids=[7])}


class _Pipeline:
    """Gives each request one token per step."""

    def __init__(self, *given: Any) -> None:
        self.handles: list[_Handle] = []

    def add_request(self, name: int, ids: Any, config: Any) -> _Handle:
        self.handles.append(_Handle(config.max_new_tokens))
        return self.handles[-1]

    def step(self) -> None:
        for handle in self.handles:
            if handle.left:
                handle.left, handle.unread = handle.left - 1, handle.unread + 1


def test_the_server_around_a_pipeline_streams_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    make: Callable[..., Any] = lambda **fields: types.SimpleNamespace(**fields)  # noqa: E731
    genai = types.ModuleType("openvino_genai")
    genai.__dict__.update(SchedulerConfig=make, GenerationConfig=make, ContinuousBatchingPipeline=_Pipeline)
    monkeypatch.setitem(sys.modules, "openvino_genai", genai)
    monkeypatch.setitem(sys.modules, "openvino", types.SimpleNamespace(Tensor=lambda ids: ids))
    module = importlib.import_module("benchmarks.peers.runners.openvino_server")

    async def ask() -> list[load.Seen]:
        given = argparse.Namespace(model="", threads=1, seqs=4, tokens=64)
        pipeline = module.Pipeline(given)
        running = asyncio.create_task(pipeline.run())
        server = await asyncio.start_server(module.Http(pipeline).serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        asks = load.make(load.Shape(6, (3, 9), 2, 5, vocab=50), seed=0)
        async with server:
            url = f"http://127.0.0.1:{port}"
            seen = await load.run(url, asks, clients=3, key="", timeout=30, done=lambda: None)
        running.cancel()
        return seen

    seen = asyncio.run(ask())
    assert [one.error for one in seen] == [""] * 6
    assert all([count for _, count in one.pieces] == [1, 2, 3, 4, 5] for one in seen)
    assert all(3 <= one.prompt_tokens <= 9 for one in seen)
