"""`headrace quantize` and what runs afterwards, as users type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace import cli
from headrace.box import calibration, held_out_text
from tests.models.conftest import one_thread
from tests.text.folders import random_model

__all__ = ["one_thread"]

COMMON = ("--weights", "int4:group=32", "--threads", "1", "--samples", "3", "--tokens", "24")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(random_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def headrace(capsys: pytest.CaptureFixture[str]):
    """Runs one command line in this process: (exit code, stdout, stderr)."""

    def run(*argv: str) -> tuple[int, str, str]:
        code = cli.main(argv)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_folder_that_runs(headrace, model: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    argv = ["quantize", "--model", model, "--recipe", "awq:grid=4", "--out", out, *COMMON]
    code, text, err = headrace(*argv, "--json")
    (row,) = [json.loads(line) for line in text.splitlines()]
    assert code == 0 and "on 3 texts of 24 tokens" in err
    assert row["seconds"] > 0 and row["bytes_after"] < row["bytes_before"] / 3
    facts = {key: row[key] for key in ("out", "weights", "recipe", "texts", "tokens", "pieces", "resumed")}
    assert facts == {
        "out": out,
        "weights": "int4:group=32",
        "recipe": "awq:grid=4",
        "texts": 3,
        "tokens": 24,
        "pieces": 3,
        "resumed": 0,
    }
    run = ("--model", out, "--max-tokens", "4", "--temperature", "0", "--threads", "1")
    code, text, err = headrace("run", "def", *run)
    assert code == 0 and text and "--weights int4:group=32" in err
    assert headrace("run", "def", *run, "--weights", "int4:group=32", "-q") == (0, text, "")
    code, _, err = headrace("run", "def", *run, "--weights", "int8")
    assert (
        code == 2 and err.count("\n") == 1 and "keeps its weights as int4:group=32 (recipe awq:grid=4)" in err
    )
    code, _, err = headrace(
        "quantize", "--model", out, "--recipe", "rtn", "--out", str(tmp_path / "b"), *COMMON
    )
    assert code == 2 and "is quantised already (int4:group=32, awq:grid=4)" in err
    code, _, err = headrace(*argv)
    assert code == 2 and "the folder is not empty (config.json)" in err


def test_a_table_and_silence(headrace, model: str, tmp_path: Path) -> None:
    argv = ["quantize", "--model", model, "--recipe", "rtn", *COMMON, "--out"]
    code, text, err = headrace(*argv, str(tmp_path / "a"))
    assert code == 0 and text.split()[:5] == ["recipe", "weights", "before", "after", "seconds"]
    assert f"run it with --model {tmp_path / 'a'}" in err
    assert headrace(*argv, str(tmp_path / "b"), "-q")[2] == ""


def test_ones_own_text(headrace, model: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    argv = ["quantize", "--model", model, "--recipe", "gptq", *COMMON, "--text", str(text), "--out"]
    code, found, _ = headrace(*argv, str(tmp_path / "a"), "--json")
    assert code == 0 and json.loads(found)["texts"] == 3
    text.write_text("short")
    code, _, err = headrace(*argv, str(tmp_path / "b"))
    assert code == 2 and "has fewer than 24 tokens: name a longer one, or lower --tokens" in err
    text.write_bytes(b"\xff\xfe\xff")
    assert "is not UTF-8 text" in headrace(*argv, str(tmp_path / "b"))[2]
    assert not (tmp_path / "b").exists()


BAD = {
    "unknown recipe": (["--recipe", "akw"], "recipe: no technique called 'akw'; did you mean 'awq'?"),
    "unknown option": (["--recipe", "gptq:dump=1"], "did you mean 'damp'?"),
    "unknown format": (["--weights", "int44"], "did you mean 'int4'?"),
    "no codes": (["--weights", "bf16"], "--weights bf16 has no codes that a recipe could choose"),
    "no model": (["--model", "no/such"], "no/such does not exist"),
    "no text": (["--text", "no/such"], "cannot read --text=no/such"),
    "text for nothing": (["--recipe", "rtn", "--text", "README.md"], "calibrates nothing: leave it out"),
    "no texts": (["--samples", "0"], "Invalid value for '--samples'"),
    "an option of other verbs": (["--kv-codec", "int8"], "no option --kv-codec"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line(headrace, what: str, model: str, tmp_path: Path) -> None:
    argv, message = BAD[what]
    given = {
        "--model": model,
        "--recipe": "gptq",
        "--weights": "int4:group=32",
        "--out": str(tmp_path / "out"),
    }
    given |= dict(zip(argv[::2], argv[1::2], strict=True))
    code, out, err = headrace("quantize", *[word for pair in given.items() for word in pair])
    assert (code, out) == (2, "") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "out").exists()


def test_the_model_is_not_overwritten(headrace, model: str) -> None:
    code, _, err = headrace("quantize", "--model", model, "--recipe", "rtn", "--out", model, *COMMON)
    assert code == 2 and "is the model's own folder: name another" in err


# ---- calibration text ----


def test_calibration_text_is_none_that_eval_scores() -> None:
    held_out = held_out_text()
    texts: list[str] = []

    def encode(text: str) -> list[int]:
        texts.append(text)
        return list(text.encode())

    rows = calibration.draw(encode, [7], 40, 3000, 0)
    assert len(rows) == 40 and all(len(row) == 3000 and row[0] == 7 for row in rows)
    assert rows == calibration.draw(encode, [7], 40, 3000, 0) != calibration.draw(encode, [7], 40, 3000, 1)
    code = [text for text in texts if len(text) == 2000]
    assert code, "this Python has its sources"
    lines = {line for line in held_out.splitlines() if len(line) > 60}
    shared = [line for text in texts for line in text.splitlines() if line in lines]
    assert not shared


def test_a_text_is_cut_all_over_and_never_twice() -> None:
    ids = list(range(100))
    rows = calibration.cut(ids, [500], 4, 11, 0)
    assert len(rows) == 4 and all(row[0] == 500 and len(row) == 11 for row in rows)
    parts = [row[1:] for row in rows]
    assert all(part == list(range(part[0], part[0] + 10)) and part[0] % 10 == 0 for part in parts)
    assert len({part[0] for part in parts}) == 4
    assert len(calibration.cut(ids, [500], 40, 11, 0)) == 10
    assert calibration.cut(ids[:9], [500], 4, 11, 0) == [] == calibration.cut(ids, [500], 4, 1, 0)
