"""Does decoding with fewer bits gain what it reads less? Each width in turns, in processes of their own.

    python benchmarks/cases/bits.py [--shape llama-3.2-1b] [--bits 4,3,2] [--repetitions 3] [--out FILE]

Target  tokens per second in proportion to the bytes of the weights, within 15 %
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

from result import show

from headrace import kernels
from headrace.meter import Spread


def read(shape: str, bits: str) -> tuple[float, float]:
    """Tokens per second at batch 1, and gigabytes of weights. Embedding and head have the same width."""
    sizes = "--batch 1 --prompt-len 64 --gen-len 48 --repeat 2 --json --quiet"
    spec = f"int{bits}:group=128,head=int{bits}"
    command = [sys.executable, "-m", "headrace", "bench", "latency", "--shape", shape, "--weights", spec]
    run = subprocess.run([*command, *sizes.split()], check=True, stdout=subprocess.PIPE)
    row = json.loads(run.stdout)[0]
    return row["decode_tok_s"], row["weight_bytes"] / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--bits", default="4,3,2", help="the first is what the others are compared with")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    widths = given.bits.split(",")
    turns = [{bits: read(given.shape, bits) for bits in widths} for _ in range(given.repetitions)]
    lines = [
        "# Decoding with fewer bits\n",
        f"{given.shape}, batch 1, level {kernels.isa()}, {kernels.threads()} threads, {datetime.date.today()}. Median "
        f"(lowest-highest) of {given.repetitions} interleaved runs; embedding and head have as many bits.  ",
        f"`python benchmarks/cases/bits.py --shape {given.shape} --bits {given.bits}`\n",
        "| bits | weights, GB | decode tok/s | times as fast | times fewer bytes | of the proportion |\n"
        "|---|---|---|---|---|---|",
    ]
    base = Spread.of([turn[widths[0]][0] for turn in turns]).median
    for bits in widths:
        rates, size = Spread.of([turn[bits][0] for turn in turns]), turns[0][bits][1]
        faster, fewer = rates.median / base, turns[0][widths[0]][1] / size
        lines.append(
            f"| {bits} | {size:.3f} | {rates:.1f} | {faster:.2f} | {fewer:.2f} | {faster / fewer:.0%} |"
        )
    show("\n".join(lines) + "\n", given.out)


if __name__ == "__main__":
    main()
