"""Is the product that is chosen for a row count the faster one? Both ways and the choice, interleaved.

    python benchmarks/cases/dispatch.py [--shape llama-3.2-1b] [--weights int4] [--repetitions 9] [--out FILE]

Paper   https://arxiv.org/abs/2311.01282 (FlashDecoding++)
Target  the chosen way is at most 5 % slower than the better one
"""

from __future__ import annotations

import argparse
import datetime
import time
from dataclasses import replace
from pathlib import Path

import torch
from result import show

from headrace import kernels
from headrace.commands import shapes
from headrace.kernels.int_linear import IntWeight, int_linear
from headrace.meter import Spread
from headrace.weight.assemble import head_format, make, places

ROWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)


def read(weight: IntWeight, rows: int, repetitions: int) -> tuple[Spread, Spread]:
    """Microseconds unpacked in registers, and through a panel."""
    x_TI, out_TO = torch.randn(rows, weight.width), torch.empty(rows, weight.outputs)
    times: tuple[list[float], list[float]] = ([], [])
    for repetition in range(repetitions + 1):
        for panel, kept in enumerate(times):
            begin = time.perf_counter()
            int_linear(x_TI, replace(weight, few=0 if panel else rows), out_TO=out_TO)
            kept += [(time.perf_counter() - begin) * 1e6] if repetition else []
    return Spread.of(times[0]), Spread.of(times[1])


def weights(shape: str, spec: str) -> dict[str, IntWeight]:
    """One matrix of each size, packed from random numbers."""
    model, form = shapes.architecture(shape), make(spec)
    found: dict[str, IntWeight] = {}
    for name, size in places(model)[1].items():
        if len(size) != 2:
            continue
        head = "embed" in name or "head" in name
        text = f"{size[0]} x {size[1]}{' (head)' if head else ''}"
        if text not in found:
            packing = (head_format(form) if head else form).start(*size, torch.float32)
            for first in range(0, size[0], 4096):
                packing.put(first, torch.randn(min(4096, size[0] - first), size[1]))
            found[text] = packing.finish().weight
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = [
        "# The chosen way to multiply, against the better one\n",
        f"Level {kernels.isa()}, {kernels.threads()} threads, {datetime.date.today()}. Microseconds: median "
        f"(lowest-highest) of {given.repetitions} interleaved calls.  ",
        f"`python benchmarks/cases/dispatch.py --shape {given.shape} --weights {given.weights} "
        f"--repetitions {given.repetitions}`\n",
        "| matrix | rows | in registers | through a panel | chosen | chosen / better |\n|---|---|---|---|---|---|",
    ]
    worst = 1.0
    for size, weight in weights(given.shape, given.weights).items():
        for rows in ROWS:
            ways = read(weight, rows, given.repetitions)
            chosen = int(rows > weight.few)
            ratio = ways[chosen].median / min(way.median for way in ways)
            worst = max(worst, ratio)
            cells = [f"{way:.0f}" for way in ways]
            name = ("registers", "panel")[chosen]
            lines.append(f"| {size} | {rows} | {cells[0]} | {cells[1]} | {name} | {ratio:.2f} |")
    lines.append(f"\nWorst: {worst:.2f}.")
    show("\n".join(lines) + "\n", given.out)


if __name__ == "__main__":
    main()
