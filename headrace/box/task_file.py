"""The user's own task: a file of examples, one JSON object per line, each in one of two forms.

    {"prompt": "2 + 2 =", "answer": " 4", "stop": "\\n"}                a greedy answer that is right, or not
    {"prompt": "The sky is", "choices": [" blue", " green"], "answer": 0}  the likeliest choice

`stop` ends an answer, and is a line break where it is left out. An answer is right if it is the one given, blanks
around both aside. Choices are compared by log-probability, and once more per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from headrace.box.evaluate import Score, greedy_answers, score
from headrace.box.tasks import Example, same_answer
from headrace.errors import ConfigError
from headrace.llm import LLM

MAX_BYTES = 1 << 30
MAX_CHOICES = 100
Text = Annotated[str, msgspec.Meta(min_length=1)]


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    prompt: Text
    answer: str | int
    stop: Text = "\n"
    choices: Annotated[list[Text], msgspec.Meta(min_length=2, max_length=MAX_CHOICES)] | None = None


class Choice(msgspec.Struct, frozen=True):
    """A prompt, what may follow it, and which of these is right."""

    prompt: str
    choices: tuple[str, ...]
    right: int


def read(path: Path) -> list[Example] | list[Choice]:
    """The examples of a file, all of one form. Raises ConfigError that names the line."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path} is larger than 1 GiB: split it")
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    found = [_parse(path, i, line) for i, line in enumerate(lines, 1)]
    examples = [one for one in found if isinstance(one, Example)]
    choices = [one for one in found if isinstance(one, Choice)]
    if examples and choices:
        raise ConfigError(f"{path} has lines with choices and lines without: put them into two files")
    if not found:
        raise ConfigError(f"{path} has no lines: each is an object with prompt and answer")
    return choices or examples


def evaluate(llm: LLM, path: Path, count: int, seed: int) -> Iterator[Score]:
    """Scores the first `count` examples; the task is called as the file is."""
    found, name = read(path)[:count], path.stem
    size = f"{len(found)} lines"
    if isinstance(found[0], Choice):
        choices = [one for one in found if isinstance(one, Choice)]
        for metric, shares in zip(("accuracy", "per token"), _chosen(llm, choices), strict=True):
            yield score(name, metric, shares, seed, size)
        return
    examples = [one for one in found if isinstance(one, Example)]
    outputs = greedy_answers(llm, name, examples)
    if outputs is None:
        raise ConfigError(
            f"{path}: a prompt with its answer does not fit in the context of {llm.engine.context}"
        )
    shares = [(float(same_answer(e, o.text)), 1.0) for e, o in zip(examples, outputs, strict=True)]
    yield score(name, "accuracy", shares, seed, size)


def _chosen(llm: LLM, found: Sequence[Choice]) -> tuple[list[tuple[float, float]], ...]:
    """Whether the right choice is the likeliest, and the likeliest per token."""
    plain, mean = [], []
    for one in found:
        scores = llm.score(one.prompt, one.choices, progress=False)
        places = range(len(scores))
        plain.append((float(max(places, key=lambda i: scores[i].logprob) == one.right), 1.0))
        mean.append((float(max(places, key=lambda i: scores[i].mean) == one.right), 1.0))
    return plain, mean


def _parse(path: Path, number: int, line: bytes) -> Example | Choice:
    try:
        made = msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}, line {number}: {error}") from None
    if made.choices is None:
        if not isinstance(made.answer, str) or not made.answer.strip():
            raise ConfigError(f"{path}, line {number}: answer must be a text that is not empty")
        return Example(made.prompt, made.answer, made.stop)
    if not isinstance(made.answer, int) or not 0 <= made.answer < len(made.choices):
        raise ConfigError(f"{path}, line {number}: answer must be the place of the right choice, from 0")
    return Choice(made.prompt, tuple(made.choices), made.answer)
