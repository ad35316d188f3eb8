"""Stacks beside each other: what is measured, who is beaten, and what a person gets to see."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from headrace import cli
from headrace.commands.flags import make_config, merged, parse_flags, to_flags
from headrace.commands.pareto import Point, front
from headrace.config import EngineConfig
from headrace.errors import ConfigError
from tests.text.folders import random_model

STACKS = ("--weights plain", "small: --kv-codec int8 --page-tokens 32", "--context 9999999")
FIGURES = {
    "prefill_tok_s",
    "decode_tok_s",
    "peak_rss_bytes",
    "weight_bytes",
    "kv_bytes_per_token",
    "file_bytes",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(random_model(tmp_path_factory.mktemp("model")))


def test_stacks_are_measured_in_turns(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two that run and one that cannot: all figures, all files, and the reason."""
    argv = ["compare", "--model", model, "--prompt-len", "20", "--gen-len", "4", "--repeat", "2", "--n", "2"]
    for stack in STACKS:
        argv += ["--stack", stack]
    argv += ["--tasks", "ppl,add", "--batch", "1,2", "--json"]
    files = tmp_path / "trade.svg", tmp_path / "table.md"
    assert cli.main([*argv, "--plot", str(files[0]), "--out", str(files[1])]) == 0
    out, err = capsys.readouterr()
    plain, small, refused = json.loads(out)
    assert [entry["stack"] for entry in (plain, small, refused)] == [STACKS[0], "small", STACKS[2]]
    for entry in (plain, small):
        assert len(entry["turns"]) == 2 and "failure" not in entry
        assert all(set(row) >= FIGURES for rows in entry["turns"] for row in rows)
        assert [row["batch"] for row in entry["turns"][0]] == [1, 2]
        assert {score["task"] for score in entry["scores"]} == {"ppl", "add"}
    size = {entry["stack"]: entry["turns"][0][0]["kv_bytes_per_token"] for entry in (plain, small)}
    assert size["small"] < size["--weights plain"], "the codec's own bytes are what counts"
    assert "context" in refused["failure"] and not refused["turns"]
    turns = [line for line in err.splitlines() if "turn " in line]
    assert [line.partition(", ")[2].partition(":")[0] for line in turns[:2]] == [STACKS[0], "small"]
    labels = set(ElementTree.parse(files[0]).getroot().itertext())
    assert {STACKS[0], "small"} <= labels and STACKS[2] not in labels
    table = files[1].read_text()
    assert "| small |" in table and refused["failure"] in table and "ppl bits/byte" in table


def test_the_terminal_shows_a_table(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "compare",
        "--model",
        model,
        "--prompt-len",
        "9",
        "--gen-len",
        "2",
        "--repeat",
        "1",
        "--tasks",
        "",
    ]
    assert cli.main([*argv, "--stack", "", "--stack", "--kv-codec int8", "--batch", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["stack", "prefill"] and lines[1].startswith("defaults")
    assert lines[2].startswith("--kv-codec int8") and "x" in lines[2]


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["--stack", ""], "two or more different"),
        (["--stack", "", "--stack", ""], "two or more different"),
        (["--stack", "", "--stack", "int8"], "not a list of flags"),
        (["--stack", "", "--stack", "--wieghts int4"], "--weights"),
        (["--stack", "", "--stack", "--weights"], "needs a value"),
        (["--stack", "", "--stack", "--threads two"], "whole number"),
        (["--stack", "", "--stack", "--weights int4", "--plot", "x.pdf"], ".png or .svg"),
        (["--stack", "", "--stack", "--weights int4", "--out", "nowhere/x.md"], "no folder"),
        (["--stack", "", "--stack", "--model tiny-draft", "--shape", "llama-3.2-1b"], "both name a model"),
    ],
)
def test_what_cannot_be_compared(argv: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", *argv]) == 2
    error = capsys.readouterr().err
    assert match in error and error.count("\n") == 1


def test_flags_make_the_config_that_they_were_made_from() -> None:
    text = (
        "--weights int4:group=32 --kv-bytes 64MiB --threads 2 --no-prefix-cache -m tiny-draft --context=512"
    )
    config = make_config(parse_flags(text, "here"))
    assert config.stack == {"weights": "int4:group=32"} and config.kv_bytes == 64 << 20
    assert config.threads == 2 and not config.prefix_cache and config.model == "tiny-draft"
    assert make_config(parse_flags(" ".join(to_flags(config)), "again")) == config
    assert to_flags(EngineConfig()) == ()
    other = merged(config, parse_flags("--weights plain --threads 1", "here"))
    assert other.stack == {"weights": "plain"} and other.threads == 1 and other.kv_bytes == 64 << 20
    with pytest.raises(ConfigError, match="no flag '--temperature'"):
        parse_flags("--temperature 0", "here")


def test_the_front_is_who_no_other_beats() -> None:
    a, b, c, d = Point("a", 1, 5), Point("b", 2, 4), Point("c", 2, 3), Point("d", 3, 1)
    assert front([d, c, b, a], more_x=True, more_y=True) == [a, b, d]
    assert front([a, b, c, d], more_x=True, more_y=False) == [d]
    assert front([a, b, c, d], more_x=False, more_y=False) == [a, c, d]
    assert front([a, a], more_x=True, more_y=True) == [a, a], "equals do not beat each other"
