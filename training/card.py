"""Writes a model's README.md from its card.json, so that no figure is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path

from training.recipe import RECIPES, Recipe

HEAD = """---
license: apache-2.0
language: [en, code]
library_name: transformers
pipeline_tag: text-generation
tags: [headrace, from-scratch, test-model]
---

# {name}

{purpose} Llama architecture, {parameters:,} parameters (bfloat16, tied embeddings), context {context} tokens,
byte-level BPE with 4,096 entries. Trained from scratch by `training/` in the headrace repository, on an ordinary CPU.

It is a test instrument: it knows Python source a little and a handful of tasks with exact answers well enough that a
lossy technique shows. It is no assistant, and its output is not to be relied on.

## Shape

| width | layers | query heads | key/value heads | head size | MLP width | RoPE theta | norm epsilon |
|---|---|---|---|---|---|---|---|
| {width} | {layers} | {heads} | {kv_heads} | {head} | {mlp} | {theta:g} | {eps:g} |

## Data

{tokens_seen:,} tokens ({minutes} minutes of wall time on a shared two-core machine), drawn by seed from:

- the source of the Python standard library (Python Software Foundation License), as installed with the interpreter,
  without tests and without the modules held out below;
- synthetic tasks with exact verifiers (`headrace/box/tasks.py`), one in five in the chat format;
- runs of random tokens and of library text that repeat, which teach copying, and single steps of the chain task.

Rows by stage, as relative shares (two lines with one end: batches take turns):

{stages}

{teaching}Held out by name: {held_out}. Their text is shipped as `headrace/box/heldout.txt`, PSF licensed.

## Figures

Measured by `python -m training gates {name}`, which runs `headrace eval --model {name}` on the exported files; the
interval after each is of 95 %, from resampled examples.

| figure | value | n | gate | how |
|---|---|---|---|---|
"""

PURPOSE = {
    "tiny": "The default model in the box of headrace: small enough to ship, able enough to measure with.",
    "tiny-draft": "The draft model in the box of headrace: guesses what `tiny` would say, for speculative decoding.",
}
TEACHING = "The targets were the distributions of `{teacher}` (distillation), not the text itself.\n\n"


def stage_table(recipe: Recipe) -> str:
    """One line per stage, or two where batches take turns: row length, where it ended, shares."""
    rows = [
        (stage, sort) for stage in recipe.stages for sort in ((stage.row, stage.shares), stage.turn) if sort
    ]
    kinds = sorted({kind for _, (_, shares) in rows for kind in shares})
    lines = ["| row | until (M tokens) | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 2) + "|"]
    for stage, (row, shares) in rows:
        cells = " | ".join(f"{shares.get(kind, 0):.2f}" for kind in kinds)
        lines.append(f"| {row} | {stage.until / 1e6:.1f} | {cells} |")
    return "\n".join(lines)


def gate_text(key: str, gates: dict[str, dict[str, float]]) -> str:
    least, most = gates["at_least"].get(key), gates["at_most"].get(key)
    parts = [f">= {least:g}" if least is not None else "", f"<= {most:g}" if most is not None else ""]
    return " and ".join(part for part in parts if part)


def verdict(card: dict) -> str:
    """A sentence that lists what misses its gate, or says that nothing does."""
    missed = []
    for key, value in card["figures"].items():
        least, most = card["gates"]["at_least"].get(key), card["gates"]["at_most"].get(key)
        if (least is not None and value < least) or (most is not None and value > most):
            missed.append(f"{key} ({value:g}, gate {gate_text(key, card['gates'])})")
    return f"\nNot reached: {'; '.join(missed)}.\n" if missed else "\nAll gates are reached.\n"


def write(folder: Path, held_out: tuple[str, ...]) -> None:
    """README.md beside card.json."""
    card = json.loads((folder / "card.json").read_text())
    recipe = RECIPES[card["name"]]
    shape = recipe.shape
    text = HEAD.format(
        name=card["name"],
        purpose=PURPOSE[card["name"]],
        parameters=card["parameters"],
        context=shape.context,
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head=shape.head,
        mlp=shape.mlp,
        theta=shape.rope_theta,
        eps=shape.norm_eps,
        tokens_seen=card["tokens_seen"],
        minutes=round(card["training_seconds"] / 60),
        stages=stage_table(recipe),
        teaching=TEACHING.format(teacher=recipe.teacher) if recipe.teacher else "",
        held_out=", ".join(f"`{name}`" for name in held_out),
    )
    for item in card["details"]:
        gate = gate_text(item["key"], card["gates"])
        text += f"| {item['key']} | {item['value']:g} | {item['count']} | {gate} | {item['how']} |\n"
    (folder / "README.md").write_text(text + verdict(card))
