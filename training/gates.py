"""Measures an exported model and writes its card: figures, how they were made, and the frozen thresholds.

Everything is read from the exported files (bf16 weights, float32 arithmetic), on the examples of `headrace eval` with
its default seed, so the engine must reproduce the greedy figures up to ties and the sampled ones up to noise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from headrace.box.tasks import TASKS, Example, examples
from training import corpus
from training.export import describe_shape
from training.mixture import build_corpus
from training.model import Llama
from training.sampler import sample
from training.tokens import END, END_OF_TEXT
from training.trigram import trigram_bits

SEED = 0  # the default of `headrace eval`; training draws its examples from other generators
COUNT = 100  # examples per greedy task
CHAIN_PROBLEMS, CHAIN_SAMPLES = 25, 64
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


def load(folder: Path) -> tuple[Llama, Tokenizer]:
    """The exported model in float32, and its tokenizer."""
    model = Llama(describe_shape(json.loads((folder / "config.json").read_text())))
    model.load_state_dict(
        {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    )
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def answers(
    model: Llama, tokenizer: Tokenizer, example: Example, rows: int, temperature: float, seed: int
) -> list[str]:
    """`rows` completions of one example, with room for wrong answers."""
    prompt = tokenizer.encode(example.prompt).ids
    limit = 2 * len(tokenizer.encode(example.answer + example.stop, add_special_tokens=False).ids) + 16

    def ended(ids: list[int]) -> bool:
        return ids[-1] in (END_OF_TEXT, END) or example.stop in tokenizer.decode(ids[-3:])

    return [tokenizer.decode(row) for row in sample(model, prompt, limit, rows, temperature, seed, ended)]


def greedy_task(
    model: Llama, tokenizer: Tokenizer, name: str, count: int = COUNT, size: int | None = None
) -> Figure:
    """Share of examples solved by greedy decoding."""
    task = TASKS[name]
    made = examples(name, count, SEED, size)
    right = sum(task.check(example, answers(model, tokenizer, example, 1, 0.0, 0)[0]) for example in made)
    how = f"greedy, seed {SEED}, {size or task.size} {task.size_unit}"
    return Figure(f"{name} accuracy", round(right / count, 4), count, how)


def chain_figures(
    model: Llama, tokenizer: Tokenizer, size: int | None = None, count: int = CHAIN_PROBLEMS
) -> list[Figure]:
    """pass@1 and pass@64 at temperature 1, their difference, and how far the wrong answers scatter."""
    task = TASKS["chain"]
    single, best, wrong, distinct = 0.0, 0, 0, 0
    for index, example in enumerate(examples("chain", count, SEED, size)):
        texts = answers(model, tokenizer, example, CHAIN_SAMPLES, 1.0, SEED + index)
        marks = [task.check(example, text) for text in texts]
        single += sum(marks) / len(marks)
        best += any(marks)
        finals = [
            text.split("answer ")[-1].split("\n")[0]
            for text, mark in zip(texts, marks, strict=True)
            if not mark
        ]
        wrong, distinct = wrong + len(finals), distinct + len(set(finals))
    how = f"{CHAIN_SAMPLES} samples at temperature 1, seed {SEED}, {size or task.size} {task.size_unit}"
    one, many = single / count, best / count
    return [
        Figure("pass pass@1", round(one, 4), count, how),
        Figure("pass pass@64", round(many, 4), count, how),
        Figure("pass gain", round(many - one, 4), count, "pass@64 - pass@1"),
        Figure(
            "pass scatter",
            round(distinct / max(wrong, 1), 4),
            count,
            "distinct wrong answers per wrong answer",
        ),
    ]


def chunks(ids: list[int], context: int) -> Iterator[tuple[list[int], int]]:
    """(tokens, how many are context only): <|endoftext|> and pieces of the context's length, moving on by half."""
    length = context - 1
    stop = length - 1
    yield [END_OF_TEXT, *ids[:stop]], 1
    while stop < len(ids):
        start, stop = stop, min(stop + length // 2, len(ids))
        yield [END_OF_TEXT, *ids[stop - length + 1 : stop]], length - (stop - start)


@torch.no_grad()
def chunk_logits(model: Llama, tokens: list[int], known: int) -> Tensor:
    """Logits that predict tokens[known:], [T, V]."""
    return model(torch.tensor([tokens[:-1]]))[0, known - 1 :]


def held_out_figures(model: Llama, tokenizer: Tokenizer, text: str, teacher: Llama | None) -> list[Figure]:
    """Bits per byte, beside the trigram baseline's, and greedy agreement with the teacher if there is one."""
    ids, size = tokenizer.encode(text, add_special_tokens=False).ids, len(text.encode())
    bits, same, pieces = 0.0, 0, 0
    for tokens, known in chunks(ids, model.shape.context):
        logits_TV = chunk_logits(model, tokens, known)
        picked = logits_TV.log_softmax(-1).gather(1, torch.tensor(tokens[known:])[:, None])
        bits -= float(picked.double().sum()) / np.log(2)
        pieces += 1
        if teacher is not None:
            same += int((chunk_logits(teacher, tokens, known).argmax(-1) == logits_TV.argmax(-1)).sum())
    train = build_corpus(tokenizer, corpus.training_texts()).ids
    baseline = trigram_bits(train, np.asarray(ids), model.shape.vocab)
    how = f"{model.shape.context - 1} tokens at a time, moving on by half"
    made = [
        Figure("ppl bits/byte", round(float(bits / size), 4), pieces, how),
        Figure(
            "ppl trigram bits/byte", round(baseline / size, 4), 1, "Witten-Bell trigram, same training text"
        ),
        Figure("ppl ratio to trigram", round(float(bits / baseline), 4), 1, "bits/byte over the trigram's"),
    ]
    if teacher is not None:
        made.append(Figure("agreement argmax", round(same / len(ids), 4), pieces, how))
    return made


def all_figures(name: str, box: Path) -> Iterator[Figure]:
    model, tokenizer = load(box / name)
    teacher = load(box / "tiny")[0] if name != "tiny" else None
    yield from held_out_figures(model, tokenizer, (box / "heldout.txt").read_text(encoding="utf-8"), teacher)
    for task in TASKS:
        yield greedy_task(model, tokenizer, task)
    yield from chain_figures(model, tokenizer)


def measure(name: str, box: Path, tokens_seen: int, seconds: int) -> Iterator[str]:
    """Measure the model in `box / name` and write card.json there; yields one line per figure."""
    made = []
    for figure in all_figures(name, box):
        made.append(figure)
        least, most = LEAST[name].get(figure.key), MOST[name].get(figure.key)
        passed = (least is None or figure.value >= least) and (most is None or figure.value <= most)
        yield f"{name} {figure.key} {figure.value} ({figure.count}; {figure.how}){'' if passed else '  BELOW ITS GATE'}"
    card = {
        "name": name,
        "parameters": sum(p.numel() for p in load(box / name)[0].parameters()),
        "tokens_seen": tokens_seen,
        "training_seconds": seconds,
        "figures": {figure.key: figure.value for figure in made},
        "gates": {"at_least": LEAST[name], "at_most": MOST[name]},
        "details": [asdict(figure) for figure in made],
    }
    (box / name / "card.json").write_text(json.dumps(card, indent=2) + "\n")
