"""What does rounding weights to nearest cost? Every task of the box and bits per byte, for several formats.

    python benchmarks/cases/rounding_quality.py [--model tiny] [--n 100] [--weights SPEC ...] [--out FILE]

No calibration: this is the floor that recipes (AWQ, GPTQ, ...) have to beat. Intervals are of 95 %, from resampled
examples; all formats see the same examples.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

from headrace import LLM, kernels
from headrace.box.evaluate import Score, evaluate
from headrace.box.tasks import TASKS

WEIGHTS = ("bf16", "int8", "int4:group=32", "int4", "int4:asymmetric=true", "int3:group=32", "int2:group=32")


def scores(model: str, weights: str, count: int) -> tuple[list[Score], int]:
    """Every figure, and the bytes of the weights."""
    with LLM(model, weights=weights) as llm:
        return list(evaluate(llm, ["ppl", *TASKS, "pass"], count=count)), llm.engine.decoder.weight_bytes


def report(model: str, count: int, results: dict[str, tuple[list[Score], int]]) -> str:
    first = next(iter(results.values()))[0]
    lines = [
        f"# Rounding `{model}` to nearest",
        "",
        f"{datetime.date.today()}, kernels {kernels.isa()}, {count} examples per task, seed 0; activations are 8 bits "
        "per token, except under bf16.",
        f"`python benchmarks/cases/rounding_quality.py --model {model} --n {count}`",
        "",
        "| figure | " + " | ".join(f"`{weights}`" for weights in results) + " |",
        "|---|" + "---|" * len(results),
        "| weights, MB | " + " | ".join(f"{size / 1e6:.1f}" for _, size in results.values()) + " |",
    ]
    for i, score in enumerate(first):
        cells = [
            f"{found[i].value:.3f} ({found[i].low:.3f}-{found[i].high:.3f})" for found, _ in results.values()
        ]
        lines.append(f"| {score.task} {score.metric} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the table; --out keeps it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--weights", nargs="+", default=WEIGHTS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = {weights: scores(options.model, weights, options.n) for weights in options.weights}
    text = report(options.model, options.n, results)
    print(text)
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
