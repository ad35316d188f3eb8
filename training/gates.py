"""Measures an exported model as `headrace eval` does, holds it to its gates and writes its card.

The figures come from the engine itself, so that the card is what a user's own run of `headrace eval` prints. Only the
trigram baseline is computed here: it needs the training text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from tokenizers import Tokenizer

from headrace import LLM
from headrace.box import library
from headrace.box.evaluate import SAMPLES, Score, evaluate
from headrace.box.tasks import TASKS
from training.mixture import build_corpus
from training.trigram import trigram_bits

SEED, COUNT = 0, 100  # the defaults of `headrace eval`; training draws its examples from other generators
LEAST = {  # figure -> threshold, frozen when the models were first calibrated
    "tiny": {"passkey accuracy": 0.95, "edit_copy accuracy": 0.90, "pass pass@1": 0.10, "pass gain": 0.30},
    "tiny-draft": {"agreement argmax": 0.60},
}
MOST = {"tiny": {"pass pass@1": 0.40, "ppl ratio to trigram": 0.95}, "tiny-draft": {}}


@dataclass(frozen=True)
class Figure:
    """One measured number; `key` is "task metric", as `headrace eval` calls it."""

    key: str
    value: float
    count: int
    how: str

    @property
    def line(self) -> str:
        return f"{self.key} {self.value} ({self.count}; {self.how})"


def scores(name: str, box: Path) -> Iterator[Score]:
    """Every figure of `headrace eval --model NAME`; for a draft model also how often it agrees with `tiny`."""
    with LLM(model=str(box / name)) as llm:
        yield from evaluate(llm, ["ppl", *TASKS, "pass"], count=COUNT, seed=SEED)
        if name != "tiny":
            with LLM(model=str(box / "tiny")) as teacher:
                yield from evaluate(teacher, ["agreement"], count=COUNT, seed=SEED, draft=llm)


def to_figure(score: Score) -> Figure:
    if score.task in ("ppl", "agreement"):
        how = f"chunks of {score.size}"
    else:
        way = f"{SAMPLES} samples at temperature 1" if score.task == "pass" else "greedy"
        how = f"{way}, seed {SEED}, {score.size}"
    interval = f"{score.low:.3f} to {score.high:.3f}"
    return Figure(f"{score.task} {score.metric}", round(score.value, 4), score.count, f"{how}; {interval}")


def trigram_bits_per_byte(folder: Path, text: str) -> float:
    """What a trigram model of the training text needs for `text`."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = np.asarray(tokenizer.encode(text, add_special_tokens=False).ids)
    known = build_corpus(tokenizer, library.training_texts()).ids
    return trigram_bits(known, ids, tokenizer.get_vocab_size()) / len(text.encode())


def all_figures(name: str, box: Path) -> Iterator[Figure]:
    """The scores, and the figures that are made of two numbers."""
    made: dict[str, Score] = {}
    for score in scores(name, box):
        made[f"{score.task} {score.metric}"] = score
        yield to_figure(score)
    gain = made[f"pass pass@{SAMPLES}"].value - made["pass pass@1"].value
    yield Figure("pass gain", round(gain, 4), made["pass pass@1"].count, f"pass@{SAMPLES} - pass@1")
    baseline = trigram_bits_per_byte(box / name, (box / "heldout.txt").read_text(encoding="utf-8"))
    ratio = made["ppl bits/byte"].value / baseline
    yield Figure(
        "ppl trigram bits/byte", round(baseline, 4), 1, "Witten-Bell trigram of the same training text"
    )
    yield Figure("ppl ratio to trigram", round(ratio, 4), 1, "bits/byte over the trigram's")


def measure(name: str, box: Path, tokens_seen: int, seconds: int) -> Iterator[str]:
    """Measure the model in `box / name` and write card.json there; yields one line per figure."""
    made = []
    for figure in all_figures(name, box):
        made.append(figure)
        least, most = LEAST[name].get(figure.key), MOST[name].get(figure.key)
        passed = (least is None or figure.value >= least) and (most is None or figure.value <= most)
        yield f"{name} {figure.line}{'' if passed else '  NOT AT ITS GATE'}"
    card: dict[str, Any] = {
        "name": name,
        "parameters": parameters(box / name),
        "tokens_seen": tokens_seen,
        "training_seconds": seconds,
        "figures": {figure.key: figure.value for figure in made},
        "gates": {"at_least": LEAST[name], "at_most": MOST[name]},
        "details": [asdict(figure) for figure in made],
    }
    (box / name / "card.json").write_text(json.dumps(card, indent=2) + "\n")


def parameters(folder: Path) -> int:
    """Numbers stored in the checkpoint; the tied head is stored once."""
    with safe_open(folder / "model.safetensors", framework="np") as file:
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
