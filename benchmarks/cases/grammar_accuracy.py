"""Does a schema cost accuracy? The box's JSON task, answered freely and under the schema that its records imply.

The same examples both ways, greedy. `right` is the share of answers whose values are all right, `parses` the share that
is JSON at all; intervals and the paired difference are bootstrapped over the examples.

    python benchmarks/cases/grammar_accuracy.py [--model tiny] [--count 200] [--grammar llguidance] [--out FILE]

Claim   https://arxiv.org/abs/2411.15100 (XGrammar): constrained output is valid, and no worse for it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from pathlib import Path
from random import Random
from typing import Any

from result import show

from headrace.box.evaluate import CONFIDENCE, RESAMPLES
from headrace.box.tasks import TASKS, Example, examples, first_line
from headrace.llm import LLM
from headrace.params import Grammar, SamplingParams

TYPES = {str: "string", bool: "boolean", int: "integer"}


def schema(example: Example) -> Grammar:
    """What one would ask for: as many records as there are lines, with the fields and types that they have."""
    records = json.loads(example.answer)
    properties: dict[str, Any] = {name: {"type": TYPES[type(value)]} for name, value in records[0].items()}
    record = {"type": "object", "properties": properties, "required": list(properties)}
    items = {**record, "additionalProperties": False}
    wanted = {"type": "array", "items": items, "minItems": len(records), "maxItems": len(records)}
    return Grammar("json_schema", json.dumps(wanted))


def answers(llm: LLM, made: list[Example], constrained: bool) -> list[str]:
    prompts = [llm.tokenizer.encode(example.prompt) for example in made]
    params = [
        SamplingParams(
            temperature=0,
            max_tokens=2 * len(llm.tokenizer.encode(example.answer)) + 16,
            stop=() if constrained else (example.stop,),
            grammar=schema(example) if constrained else None,
        )
        for example in made
    ]
    return [output.text for output in llm.generate(prompts, params)]


def parses(example: Example, text: str) -> bool:
    try:
        json.loads(first_line(text, example.stop))
    except (ValueError, RecursionError):
        return False
    return True


def interval(values: list[float]) -> str:
    """The mean and its bootstrapped interval, in percent."""
    draw, count = Random(0), len(values)
    means = sorted(sum(draw.choices(values, k=count)) / count for _ in range(RESAMPLES))
    cut = round((1 - CONFIDENCE) / 2 * RESAMPLES)
    return f"{100 * sum(values) / count:.1f} ({100 * means[cut]:.1f} to {100 * means[-1 - cut]:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--grammar", default="llguidance")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    task = TASKS["json"]
    made = examples(task.name, given.count, 0)
    scores: dict[str, tuple[list[float], list[float], int]] = {}
    with LLM(given.model, grammar=given.grammar, threads=given.threads) as llm:
        for name in ("free", "schema"):
            before = llm.engine.counters.steps
            texts = answers(llm, made, constrained=name == "schema")
            pairs = list(zip(made, texts, strict=True))
            right = [float(task.check(e, text)) for e, text in pairs]
            scores[name] = (
                right,
                [float(parses(e, text)) for e, text in pairs],
                llm.engine.counters.steps - before,
            )
    lines = [
        "# Accuracy of the JSON task under a schema",
        f"{platform.machine()}, {datetime.date.today()}.  \n`python benchmarks/cases/grammar_accuracy.py --model "
        f"{given.model} --count {given.count} --grammar {given.grammar}`",
        f"Percent of {given.count} examples of {task.size} {task.size_unit}; {CONFIDENCE:.0%} intervals.",
        "| | right | parses | steps |\n|---|---|---|---|",
    ]
    for name, (right, parsed, steps) in scores.items():
        lines[-1] += f"\n| {name} | {interval(right)} | {interval(parsed)} | {steps} |"
    paired = [b - a for a, b in zip(scores["free"][0], scores["schema"][0], strict=True)]
    lines.append(f"Difference, example by example: {interval(paired)} points.")
    show("\n\n".join(lines) + "\n", given.out)


if __name__ == "__main__":
    main()
