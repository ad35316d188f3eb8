"""What does rounding to nearest cost? Every task of the box and bits per byte, for several formats of one slot.

    python benchmarks/cases/rounding_quality.py [--slot weights|kv-codec] [--formats SPEC ...] [--tasks TASK ...]
                                                [--model tiny] [--n 100] [--out FILE]

No calibration: this is the floor that recipes (AWQ, GPTQ, ...) have to beat. Intervals are of 95 %, from resampled
examples; all formats see the same examples.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from pathlib import Path

from result import show

from headrace import LLM, kernels
from headrace.box.evaluate import Score, evaluate
from headrace.box.tasks import TASKS

FORMATS = {
    "weights": (
        "bf16",
        "int8",
        "int4:group=32",
        "int4",
        "int4:asymmetric=true",
        "int3:group=32",
        "int2:group=32",
    ),
    "kv-codec": ("plain", "bf16", "int8"),
}
TITLES = {"weights": "Rounding `{}` to nearest", "kv-codec": "Rounding keys and values of `{}`"}
NOTES = {
    "weights": "activations are 8 bits per token, except under bf16",
    "kv-codec": "weights and arithmetic are float32",
}


def scores(model: str, slot: str, spec: str, tasks: list[str], count: int) -> tuple[list[Score], str]:
    """Every figure, and the size of what was rounded."""
    with LLM(model, **{slot.replace("-", "_"): spec}) as llm:
        found = list(evaluate(llm, tasks, count=count))
        if slot == "weights":
            return found, f"{llm.engine.decoder.weight_bytes / 1e6:.1f}"
        return found, f"{llm.engine.kv.bytes_per_token():,.0f}"


def report(
    model: str, slot: str, count: int, results: dict[str, tuple[list[Score], str]], command: str
) -> str:
    first = next(iter(results.values()))[0]
    sizes = {"weights": "weights, MB", "kv-codec": "bytes per token, from the pages"}
    lines = [
        f"# {TITLES[slot].format(model)}",
        "",
        f"{datetime.date.today()}, kernels {kernels.isa()}, {count} examples per task, seed 0; {NOTES[slot]}.",
        f"`python benchmarks/cases/rounding_quality.py {command}`",
        "",
        "| figure | " + " | ".join(f"`{spec}`" for spec in results) + " |",
        "|---|" + "---|" * len(results),
        f"| {sizes[slot]} | " + " | ".join(size for _, size in results.values()) + " |",
    ]
    for i, score in enumerate(first):
        cells = [
            f"{found[i].value:.5f} ({found[i].low:.3f}-{found[i].high:.3f})" for found, _ in results.values()
        ]
        lines.append(f"| {score.task} {score.metric} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the table; --out keeps it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slot", choices=FORMATS, default="weights")
    parser.add_argument("--formats", nargs="+")
    parser.add_argument("--tasks", nargs="+", default=["ppl", *TASKS, "pass"])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = {
        spec: scores(options.model, options.slot, spec, options.tasks, options.n)
        for spec in options.formats or FORMATS[options.slot]
    }
    text = report(options.model, options.slot, options.n, results, shlex.join(sys.argv[1:]))
    show(text, options.out)


if __name__ == "__main__":
    main()
