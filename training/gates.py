"""Measures an exported model and writes its card: figures, how they were made, and the frozen thresholds.

Everything is read from the exported files (bf16 weights, float32 arithmetic), so the engine must reproduce the greedy
figures up to ties and the sampled ones up to sampling noise. Examples come from `tasks.examples`, by seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from headrace.box.tasks import TASKS, examples
from training import corpus
from training.export import describe_shape
from training.mixture import build_corpus
from training.model import Llama
from training.probe import window_bits
from training.sampler import sample
from training.tokens import END, END_OF_TEXT
from training.trigram import trigram_bits

SEED = 20_000  # no training batch uses these seeds
COUNT = 100  # examples per greedy task
WINDOW = 1024  # tokens of held-out text at a time, each window after <|endoftext|>
CHAIN_PROBLEMS, CHAIN_SAMPLES = 32, 64
GATES = {
    "tiny": {"passkey": 0.95, "edit_copy": 0.90},
    "tiny-draft": {},
}
AGREEMENT_GATE = 0.60


def load(folder: Path) -> tuple[Llama, Tokenizer]:
    """The exported model in float32, and its tokenizer."""
    model = Llama(describe_shape(json.loads((folder / "config.json").read_text())))
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def greedy_task(model: Llama, tokenizer: Tokenizer, name: str, size: int, count: int = COUNT) -> dict[str, Any]:
    """Share of examples solved by greedy decoding."""
    right = 0
    for example in examples(name, count, SEED, size):
        prompt = tokenizer.encode(example.prompt).ids
        limit = len(tokenizer.encode(example.answer + example.stop, add_special_tokens=False).ids) + 4
        [made] = sample(model, prompt, limit, 1, 0.0, 0, {END_OF_TEXT, END})
        right += TASKS[name].check(example, tokenizer.decode(made))
    return {"metric": "accuracy", "figure": round(right / count, 4), "n": count, "seed": SEED, "size": size,
            "size_unit": TASKS[name].size_unit, "decoding": "greedy"}


def chain_task(model: Llama, tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    """pass@1 and pass@64 at temperature 1, and how the wrong answers scatter."""
    single, best, wrong, distinct = 0.0, 0, 0, 0
    for index, example in enumerate(examples("chain", CHAIN_PROBLEMS, SEED, size)):
        prompt = tokenizer.encode(example.prompt).ids
        limit = len(tokenizer.encode(example.answer + example.stop, add_special_tokens=False).ids) + 4
        rows = sample(model, prompt, limit, CHAIN_SAMPLES, 1.0, SEED + index, {END_OF_TEXT, END})
        texts = [tokenizer.decode(row) for row in rows]
        marks = [TASKS["chain"].check(example, text) for text in texts]
        single += sum(marks) / len(marks)
        best += any(marks)
        finals = [text.split("answer ")[-1].split("\n")[0] for text, mark in zip(texts, marks, strict=True) if not mark]
        wrong, distinct = wrong + len(finals), distinct + len(set(finals))
    return {"metric": "pass@1", "figure": round(single / CHAIN_PROBLEMS, 4), "pass@64": best / CHAIN_PROBLEMS,
            "n": CHAIN_PROBLEMS, "samples": CHAIN_SAMPLES, "seed": SEED, "size": size, "size_unit": "steps",
            "decoding": "temperature 1", "distinct_wrong_answers": round(distinct / max(wrong, 1), 3)}


def held_out(model: Llama, tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    """Bits per byte of the held-out text, for the model and for the trigram baseline."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    size = len(text.encode())
    train = build_corpus(tokenizer, corpus.training_texts()).ids
    bits = window_bits(model, torch.tensor(ids), WINDOW)
    baseline = trigram_bits(train, np.asarray(ids), model.shape.vocab)
    return {"metric": "bits per byte", "figure": round(bits / size, 4), "trigram": round(baseline / size, 4),
            "bytes": size, "tokens": len(ids), "window": WINDOW}


@torch.no_grad()
def agreement(one: Llama, other: Llama, ids: list[int], window: int = WINDOW) -> float:
    """Share of positions where the two models' most probable next tokens are the same."""
    same = 0
    for start in range(0, len(ids), window):
        piece_BT = torch.tensor([[END_OF_TEXT, *ids[start:start + window][:-1]]])
        same += int((one(piece_BT).argmax(-1) == other(piece_BT).argmax(-1)).sum())
    return same / len(ids)


def measure(name: str, box: Path, chain_steps: int | None = None) -> Iterator[str]:
    """Measure the model in `box / name`, write card.json there, yield one line per figure."""
    model, tokenizer = load(box / name)
    text = (box / "heldout.txt").read_text(encoding="utf-8")
    figures: dict[str, dict[str, Any]] = {"held_out": held_out(model, tokenizer, text)}
    yield f"{name} held_out {figures['held_out']}"
    if name != "tiny":
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        share = agreement(load(box / "tiny")[0], model, ids)
        figures["agreement"] = {"metric": "greedy agreement with tiny", "figure": round(share, 4), "n": len(ids),
                                "gate": AGREEMENT_GATE}
        yield f"{name} agreement {share:.4f}"
    for task in TASKS.values():
        if task.name == "chain":
            figure = chain_task(model, tokenizer, chain_steps or task.size)
        else:
            figure = greedy_task(model, tokenizer, task.name, task.size)
        if task.name in GATES[name]:
            figure["gate"] = GATES[name][task.name]
        figures[task.name] = figure
        yield f"{name} {task.name} {figure}"
    card = {"name": name, "parameters": sum(p.numel() for p in model.parameters()), "figures": figures}
    (box / name / "card.json").write_text(json.dumps(card, indent=2) + "\n")
