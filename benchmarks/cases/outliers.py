"""Are a few exact weights worth their bits? `spqr` beside rounding to nearest, by stored bits per weight.

    python benchmarks/cases/outliers.py [--formats SPEC ...] [--model tiny] [--pieces 8] [--n 50] [--out FILE]

Bits are of all stored bytes of the blocks' matrices: codes, scales, places. Embedding and head have 8 bits in every
format. Nothing is calibrated. Drift is measured against the same model in `bf16`.
"""

from __future__ import annotations

import argparse
import datetime
import math
import shlex
import sys
from pathlib import Path

import torch
from result import show

from headrace import LLM, kernels
from headrace.box import held_out_text
from headrace.box.drift import compare, cut, log_probs
from headrace.box.evaluate import evaluate
from headrace.weight.assemble import make, places

FORMATS = (
    "int3",
    "int3:group=64",
    "int3:group=32",
    "int4",
    "spqr:outliers=0.005",
    "spqr",
    "spqr:outliers=0.02",
    "spqr:base=int3:group=64,outliers=0.005",
    "spqr:base=int3:group=32",
)


def bits(llm: LLM, spec: str) -> float:
    """Stored bits per weight of the blocks."""
    shapes = [
        s for n, s in places(llm.engine.decoder.architecture)[1].items() if len(s) == 2 and n[:6] == "blocks"
    ]
    stored = sum(make(spec).num_bytes(*shape, torch.float32) for shape in shapes)
    return 8 * stored / sum(math.prod(shape) for shape in shapes)


def main() -> None:
    """Prints the table; --out keeps it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--pieces", type=int, default=8, help="of text, 256 tokens each, for the drift")
    parser.add_argument("--n", type=int, default=50, help="pieces for bits per byte")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = [
        f"# Outliers kept apart in `{given.model}`\n",
        f"{datetime.date.today()}, kernels {kernels.isa()}, embedding and head in `int8`, activations in 8 bits; KL in "
        f"nats per token against `bf16`, over {given.pieces} pieces of held-out text.  ",
        f"`python benchmarks/cases/outliers.py {shlex.join(sys.argv[1:])}`\n",
        "| weights | bits per weight | bits per byte | KL | same likeliest token |\n|---|---|---|---|---|",
    ]
    with LLM(given.model, weights="bf16", threads=1) as reference:
        pieces = cut(reference, held_out_text(), given.pieces)
        own = [log_probs(reference, piece) for piece in pieces]
    for spec in given.formats:
        with LLM(given.model, weights=spec, threads=1) as llm:
            found = [compare(a, log_probs(llm, piece)) for a, piece in zip(own, pieces, strict=True)]
            tokens = sum(len(piece) - 1 for piece in pieces)
            kl, same = (sum(part) / tokens for part in zip(*found, strict=True))
            (score,) = evaluate(llm, ["ppl"], count=given.n)
            lines.append(f"| `{spec}` | {bits(llm, spec):.3f} | {score.value:.4f} | {kl:.4f} | {same:.1%} |")
    show("\n".join(lines) + "\n", given.out)


if __name__ == "__main__":
    main()
