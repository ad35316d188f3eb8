"""`headrace bench serve`: arrivals, what a client sees, and the row that comes of it."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from headrace import cli
from headrace.server.load import Seen, Shape, make, read, summarise
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


def test_prompts_of_token_ids_have_exact_lengths() -> None:
    asks = make(Shape(50, (10, 20), 6, 16, vocab=40), seed=0)
    prompts = [ask.prompt for ask in asks]
    assert all(isinstance(prompt, tuple) and max(prompt) < 40 for prompt in prompts)
    assert {len(prompt) for prompt in prompts} <= set(range(10, 21))
    assert len({prompt[:6] for prompt in prompts}) == 1 and len(set(prompts)) == 50


def test_what_the_server_says_at_the_end_settles_the_count() -> None:
    ends = Seen(sent=0.0, pieces=[(1.0, 1), (2.0, 2), (2.5, 3)])
    ends.settle(2)  # the third said only why it ended
    assert ends.pieces == [(1.0, 1), (2.0, 2)]
    several = Seen(sent=0.0, pieces=[(1.0, 1), (3.0, 2)])
    several.settle(6)
    assert several.pieces == [(1.0, 3), (3.0, 6)] and several.timed_gaps == [(3.0, pytest.approx(2 / 3))] * 3
    told = Seen(sent=0.0, pieces=[(1.0, 2), (2.0, 6)])
    told.settle(6)
    assert told.pieces == [(1.0, 2), (2.0, 6)]


def test_a_piece_without_a_new_token_is_none() -> None:
    seen = Seen(sent=0.0)
    for at, tokens in ((1.0, 1), (2.0, 1), (3.0, 3)):
        usage = {"prompt_tokens": 5, "completion_tokens": tokens}
        read(seen, "data: " + json.dumps({"choices": [{"text": ""}], "usage": usage}), at)
    read(seen, 'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}', 3.5)
    read(seen, "data: [DONE]", 4.0)
    assert seen.pieces == [(1.0, 1), (3.0, 3)] and seen.gaps == [1.0, 1.0] and seen.prompt_tokens == 5


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


def test_a_plot_that_cannot_be_is_refused_before_the_load(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nowhere = str(tmp_path / "absent" / "load.png")
    assert cli.main(["bench", "serve", "--url", "http://127.0.0.1:9", "--plot", nowhere]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_against_one_of_its_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    flags = ["--requests", "4", "--rate", "50", "--words", "3", "--max-tokens", "3", "--threads", "1"]
    flags += ["--plot", str(tmp_path / "load.png")]
    assert cli.main(["bench", "serve", "--model", "tiny-draft", *flags]) == 0
    found = capsys.readouterr()
    assert "first token ms" in found.out and "4 requests, 0 failed" in found.err
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
