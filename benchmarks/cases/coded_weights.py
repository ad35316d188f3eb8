"""Is reading seven tenths of the bytes worth decoding them? `dfloat11` beside `bf16`, call by call in turns.

    python benchmarks/cases/coded_weights.py [--outputs 16384] [--inputs 2048] [--rows 1,4,16] [--turns 60] [--out FILE]

Normally distributed weights, one thread, and its own processor time, which other processes disturb less than the
clock; results are compared bit for bit. Matrices are larger than caches.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import time
from pathlib import Path

import torch
from result import show

from headrace import kernels
from headrace.meter import Spread
from headrace.weight.formats import SLOT
from headrace.weight.matrix import Matrix

FORMATS = ("bf16", "dfloat11")


def packed(spec: str, outputs: int, inputs: int) -> Matrix:
    """Rows of 512 outputs, again and again."""
    packing = SLOT.make(spec).start(outputs, inputs, torch.float32)
    rows_RI = torch.randn(512, inputs, generator=torch.Generator().manual_seed(0)) * inputs**-0.5
    for first in range(0, outputs, 512):
        packing.put(first, rows_RI[: outputs - first])
    return packing.finish()


def turns(matrices: dict[str, Matrix], rows: int, inputs: int, count: int) -> dict[str, list[float]]:
    """Seconds of each format's product, in turns."""
    x_TI = torch.randn(rows, inputs)
    found: dict[str, list[float]] = {spec: [] for spec in matrices}
    results = []
    for _ in range(count):
        for spec, matrix in matrices.items():
            start = time.thread_time()
            y_TO = matrix.multiply(x_TI)
            found[spec].append(time.thread_time() - start)
            results = [*results[-1:], y_TO]
        assert torch.equal(*results), "not the same bits"
    return found


def main() -> None:
    """Prints the table; --out keeps it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--outputs", type=int, default=16_384)
    parser.add_argument("--inputs", type=int, default=2048)
    parser.add_argument("--rows", default="1,2,4,8,16,64")
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    kernels.set_threads(1)
    torch.set_num_threads(1)
    matrices = {spec: packed(spec, given.outputs, given.inputs) for spec in FORMATS}
    dense, coded = (matrices[spec].nbytes for spec in FORMATS)
    size = given.outputs * given.inputs
    lines = [
        "# Coded weights beside plain ones\n",
        f"{given.outputs} x {given.inputs} of a normal law: {8 * dense / size:.2f} bits per weight in `bf16`, "
        f"{8 * coded / size:.2f} in `dfloat11` ({coded / dense:.1%}). Level {kernels.isa()}, one thread, "
        f"{datetime.date.today()}, {given.turns} turns; picoseconds per weight and product, median (lowest-highest). "
        "Results had the same bits.  ",
        f"`python benchmarks/cases/coded_weights.py {shlex.join(sys.argv[1:])}`\n",
        "| rows | `bf16` | `dfloat11` | times as fast, turn by turn |\n|---|---|---|---|",
    ]
    for rows in map(int, given.rows.split(",")):
        found = turns(matrices, rows, given.inputs, given.turns)
        ratios = Spread.of([a / b for a, b in zip(*(found[spec] for spec in FORMATS), strict=True)])
        cells = [Spread.of([1e12 * s / size for s in found[spec]]) for spec in FORMATS]
        lines.append(f"| {rows} | {cells[0]:.0f} | {cells[1]:.0f} | {ratios:.2f} |")
    show("\n".join(lines) + "\n", given.out)


if __name__ == "__main__":
    main()
