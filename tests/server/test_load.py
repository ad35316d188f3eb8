"""`headrace bench serve`: arrivals, what a client sees, and the row that comes of it."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from headrace import cli
from headrace.server.load import Seen, Shape, make, summarise
from tests.server.running import Server


def test_arrivals_follow_the_process() -> None:
    for burstiness in (0.25, 1.0, 4.0):
        asks = make(Shape(4000, (5, 9), 3, 16, rate=10.0, burstiness=burstiness), seed=1)
        gaps = [after.at - before.at for before, after in zip(asks, asks[1:], strict=False)]
        assert statistics.mean(gaps) == pytest.approx(0.1, rel=0.1)
        spread = statistics.stdev(gaps) / statistics.mean(gaps)
        assert spread == pytest.approx(burstiness**-0.5, rel=0.15)
    assert make(Shape(3, (5, 9), 3, 16), seed=1) == make(Shape(3, (5, 9), 3, 16), seed=1)


def test_prompts_share_their_front() -> None:
    asks = make(Shape(50, (10, 20), 6, 16), seed=0)
    texts = [ask.prompt.split() for ask in asks]
    assert all(10 <= len(text) <= 20 and text[:6] == texts[0][:6] for text in texts)
    assert len({tuple(text[6:]) for text in texts}) == 50


def test_a_row() -> None:
    good = Seen(sent=1.0, pieces=[(1.5, 1), (1.7, 2), (2.1, 4)], ended=2.2, prompt_tokens=10)
    late = Seen(sent=0.0, pieces=[(3.0, 1)], ended=4.0, prompt_tokens=6)
    lost = Seen(sent=0.0, ended=1.0, error="engine_dead")
    row = summarise([good, late, lost], ttft_s=1.0, itl_s=0.21)
    assert row["requests"] == 3 and row["failed"] == 1 and row["seconds"] == 4.0
    assert row["requests_per_s"] == 0.5 and row["output_tok_s"] == 5 / 4 and row["prompt_tok_s"] == 4.0
    assert good.gaps == pytest.approx([0.2, 0.2, 0.2])
    assert row["goodput_per_s"] == 0.25  # the late one missed its first token
    assert row["ttft_max_s"] == 3.0 and row["itl_p99_s"] == pytest.approx(0.2)


def test_against_a_running_server(server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = [
        "--requests",
        "12",
        "--clients",
        "4",
        "--words",
        "5-20",
        "--shared-words",
        "4",
        "--max-tokens",
        "6",
    ]
    assert cli.main(["bench", "serve", "--url", f"{server.url}/v1", *flags, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["requests"] == 12 and row["failed"] == 0
    assert row["output_tok_s"] * row["seconds"] == pytest.approx(72)
    assert 0 < row["ttft_p50_s"] <= row["ttft_p99_s"] <= row["ttft_max_s"] <= row["request_max_s"]


def test_against_one_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--requests", "4", "--rate", "50", "--words", "3", "--max-tokens", "3", "--threads", "1"]
    assert cli.main(["bench", "serve", "--model", "tiny-draft", *flags]) == 0
    found = capsys.readouterr()
    assert "first token ms" in found.out and "4 requests, 0 failed" in found.err
