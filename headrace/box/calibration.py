"""Text to calibrate recipes on: of the kind that the models in the box were trained on, and never what `eval` scores.

Half is source code of the standard library, without the modules that are held out; the rest are sentences from a small
grammar and solved tasks. Where Python was installed without its sources, there is no code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from headrace.box import library, prose
from headrace.box.tasks import TASKS

Encode = Callable[[str], list[int]]

_PART = 2000
"""Characters of code at a time."""
_WORDS = 120


def draw(encode: Encode, first: Sequence[int], count: int, length: int, seed: int) -> list[list[int]]:
    """`count` rows of `length` tokens that begin with `first`, of texts drawn by `seed`."""
    rng, sources = Random(seed), library.training_files()
    rows = []
    for _ in range(count):
        row = list(first)
        code = bool(sources) and rng.random() < 0.5
        while len(row) < length:
            row += encode(_code(rng, sources) if code else _made(rng))
        rows.append(row[:length])
    return rows


def cut(ids: Sequence[int], first: Sequence[int], count: int, length: int, seed: int) -> list[list[int]]:
    """At most `count` rows of `length` tokens that begin with `first`, from all over a text, none overlapping."""
    room = length - len(first)
    starts = range(0, len(ids) - room + 1, room) if room > 0 else range(0)
    chosen = sorted(Random(seed).sample(starts, min(count, len(starts))))
    return [[*first, *ids[start : start + room]] for start in chosen]


def _code(rng: Random, sources: Sequence[Path]) -> str:
    text = rng.choice(sources).read_text(encoding="utf-8", errors="replace")
    start = rng.randrange(max(1, len(text) - _PART))
    start = text.find("\n", start) + 1  # of a line, or of the text where none follows
    return text[start : start + _PART] or "\n"  # of an empty file


def _made(rng: Random) -> str:
    if rng.random() < 0.5:
        return " ".join(prose.sentences(rng, _WORDS)) + "\n\n"
    task = rng.choice(list(TASKS.values()))
    example = task.make(rng, task.size)
    return f"{example.prompt}{example.answer}{example.stop}\n"
