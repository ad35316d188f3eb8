"""The user's own task: examples are scored as they say, and a bad line is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace import cli
from headrace.box import task_file
from headrace.errors import ConfigError
from headrace.llm import LLM
from headrace.params import SamplingParams
from tests.text.folders import random_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(random_model(tmp_path_factory.mktemp("model")))


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def test_answers(folder: str, tmp_path: Path) -> None:
    """What the model says greedily is right, anything else is not."""
    with LLM(folder) as llm:
        said = llm.generate(["def area"], SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))[
            0
        ].text
        stop = said[-1]
        right = {"prompt": "def area", "answer": said.split(stop, 1)[0] or said, "stop": stop}
        path = write(tmp_path / "own.jsonl", right, {"prompt": "def area", "answer": "xyz"})
        [found] = task_file.evaluate(llm, path, 10, 0)
    assert (found.task, found.metric, found.count) == ("own", "accuracy", 2)
    assert found.value == (0.5 if right["answer"].strip() else found.value)


def test_choices(folder: str, tmp_path: Path) -> None:
    """The likeliest continuation and the likeliest per token are each scored."""
    prompt, choices = "def area(", ["width, height", "x", "tokyo tokyo tokyo"]
    with LLM(folder) as llm:
        scores = llm.score(prompt, choices)
        best = max(range(3), key=lambda i: scores[i].logprob)
        mean = max(range(3), key=lambda i: scores[i].mean)
        rows = [{"prompt": prompt, "choices": choices, "answer": i} for i in range(3)]
        found = list(task_file.evaluate(llm, write(tmp_path / "c.jsonl", *rows), 10, 0))
        assert [(one.metric, one.value) for one in found] == [("accuracy", 1 / 3), ("per token", 1 / 3)]
        one = write(tmp_path / "d.jsonl", {"prompt": prompt, "choices": choices, "answer": best})
        assert [found.value for found in task_file.evaluate(llm, one, 10, 0)] == [1.0, float(mean == best)]


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"prompt": "a", "answer": "b"}, {"prompt": "", "answer": "b"}], "line 2"),
        ([{"prompt": "a"}], "answer"),
        ([{"prompt": "a", "answer": " "}], "not empty"),
        ([{"prompt": "a", "answer": 1}], "not empty"),
        ([{"prompt": "a", "answer": "b", "choices": ["b", "c"]}], "place"),
        ([{"prompt": "a", "answer": 2, "choices": ["b", "c"]}], "place"),
        ([{"prompt": "a", "answer": 0, "choices": ["b"]}], "line 1"),
        ([{"prompt": "a", "answer": "b", "anwser": "c"}], "anwser"),
        ([{"prompt": "a", "answer": "b"}, {"prompt": "a", "answer": 0, "choices": ["b", "c"]}], "two files"),
        ([], "no lines"),
        ([[1]], "line 1"),
    ],
)
def test_lines_that_are_wrong(tmp_path: Path, rows: list[object], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        task_file.read(write(tmp_path / "x.jsonl", *rows))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        task_file.read(tmp_path / "nothing.jsonl")


def test_the_verb_scores_files_and_drift(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "mine.jsonl", {"prompt": "a", "answer": "b"})
    argv = ["eval", "--model", folder, "--n", "2", "--json", "--kv-codec", "int8"]
    assert cli.main([*argv, "--tasks", "drift", "--task-file", str(path)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["task"], row["metric"]) for row in rows] == [
        ("drift", "KL"),
        ("drift", "same"),
        ("drift", "divergence"),
        ("mine", "accuracy"),
    ]
    assert rows[0]["value"] > 0
    assert cli.main([*argv, "--task-file", str(tmp_path / "no.jsonl")]) == 2
    assert "cannot read" in capsys.readouterr().err
