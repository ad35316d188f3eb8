"""Do recipes lose less than rounding to nearest, at the same bytes? Held-out text, the same pieces for all of them.

    python benchmarks/cases/recipes.py [--model tiny] [--weights SPEC ...] [--recipes SPEC ...] [--seeds 0 1 2]
                                       [--n 200] [--samples 32] [--threads N] [--out FILE]

Target  bits per byte and KL to the model itself below those of `rtn`, at 3 and at 4 bits

Differences are paired: both sides on the same piece of text, and their interval of 95 % from resampled pieces. Seeds
are of the calibration text.
"""

from __future__ import annotations

import argparse
import datetime
import math
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from result import show

from headrace import LLM, kernels
from headrace.box import held_out_text
from headrace.box.drift import compare, cut, log_probs
from headrace.box.evaluate import bootstrap


@dataclass(frozen=True)
class Piece:
    """What one folder did on one piece of text, in sums."""

    bits: float
    bytes: float
    kl: float
    tokens: float


def quantise(folder: Path, given: argparse.Namespace, weights: str, recipe: str, seed: int) -> None:
    """As users do it."""
    flags = {
        "model": given.model,
        "weights": weights,
        "recipe": recipe,
        "samples": given.samples,
        "threads": given.threads,
        "seed": seed,
        "out": folder,
    }
    command = [sys.executable, "-m", "headrace", "quantize", "-q", *(f"--{k}={v}" for k, v in flags.items())]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class Text:
    """Held-out pieces, and what the model itself says of them: the same for every folder."""

    def __init__(self, model: str, count: int, threads: int) -> None:
        with LLM(model, threads=threads) as llm:
            self.pieces = cut(llm, held_out_text(), count)
            self.own = [log_probs(llm, ids) for ids in self.pieces]

    def read(self, llm: LLM) -> list[Piece]:
        found = []
        for ids, own_TV in zip(self.pieces, self.own, strict=True):
            law_TV = log_probs(llm, ids)
            kl, _ = compare(own_TV, law_TV)
            nats = -float(law_TV[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].double().sum())
            size = len(llm.tokenizer.decode_bytes(ids[1:]))
            found.append(Piece(nats / math.log(2), size, kl, len(ids) - 1))
        return found


def measure(
    given: argparse.Namespace, text: Text, weights: str, recipe: str, seed: int
) -> tuple[list[Piece], int]:
    """All pieces, and the bytes of the weights in memory."""
    with tempfile.TemporaryDirectory() as room:
        quantise(Path(room) / "model", given, weights, recipe, seed)
        with LLM(str(Path(room) / "model"), threads=given.threads) as llm:
            return text.read(llm), llm.engine.decoder.weight_bytes


def interval(shares: Sequence[tuple[float, float]]) -> str:
    low, high = bootstrap(shares, 0)
    value = sum(a for a, _ in shares) / sum(b for _, b in shares)
    return f"{value:+.5f} ({low:+.5f} to {high:+.5f})"


def row(recipe: str, seed: int, pieces: list[Piece], base: list[Piece], size: int) -> str:
    pairs = list(zip(pieces, base, strict=True))
    bits = interval([(p.bits - b.bits, p.bytes) for p, b in pairs])
    kl = interval([(p.kl - b.kl, p.tokens) for p, b in pairs])
    per_byte = sum(p.bits for p in pieces) / sum(p.bytes for p in pieces)
    nats = sum(p.kl for p in pieces) / sum(p.tokens for p in pieces)
    same = pieces == base
    cells = (
        recipe,
        str(seed),
        f"{size:,}",
        f"{per_byte:.5f}",
        "" if same else bits,
        f"{nats:.5f}",
        "" if same else kl,
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Prints the tables; --out keeps them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--weights", nargs="+", default=["int4", "int3"])
    parser.add_argument("--recipes", nargs="+", default=["awq", "gptq", "qoq"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = [
        f"# Recipes against rounding to nearest, `{given.model}`\n",
        f"{datetime.date.today()}, kernels {kernels.isa()}; at most {given.n} pieces of 256 tokens of held-out text; "
        f"calibration on {given.samples} texts of 512 tokens, drawn by the seed. Differences are to `rtn` of the same "
        "format, paired by piece, with their interval of 95 %. Sizes are of the weights in memory.  ",
        f"`python benchmarks/cases/recipes.py {shlex.join(sys.argv[1:])}`",
    ]
    text = Text(given.model, given.n, given.threads)
    for weights in given.weights:
        lines += [
            f"\n## `{weights}`\n",
            "| recipe | seed | bytes | bits/byte | against `rtn` | KL, nats | against `rtn` |",
            "|---|---|---|---|---|---|---|",
        ]
        base, size = measure(given, text, weights, "rtn", 0)
        lines.append(row("`rtn`", 0, base, base, size))
        for seed in given.seeds:
            for recipe in given.recipes:
                pieces, size = measure(given, text, weights, recipe, seed)
                lines.append(row(f"`{recipe}`", seed, pieces, base, size))
                print(lines[-1], file=sys.stderr, flush=True)
    show("\n".join(lines) + "\n", given.out)


if __name__ == "__main__":
    main()
