"""Is looking up faster than multiplying? Products of one layer, formats in turns, with one row and with some.

    python benchmarks/cases/lut.py [--shape llama-3.2-1b] [--rows 1,4] [--threads 2] [--turns 40]
        [--matrix OUTPUTSxINPUTS] [--times 1] [--ggml GGML/include,LIB] [--out FILE]

Paper   https://arxiv.org/abs/2407.00088 (T-MAC)
Target  time in proportion to bits within 15 %, and less than that of the dot products of as many bits, and of
        llama.cpp's TQ1_0 and TQ2_0 at 1 and 2 bits

Formats take turns, so each finds its weights in memory. A small `--matrix`, multiplied some `--times` in a turn, is in
a cache: that shows what a kernel needs without waiting for memory. Products are written down and called natively, as
the steps of a model are. `--ggml` names the folder of ggml's headers and that of its libraries: ggml_products.c is
compiled against them, and takes part.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from result import show

from headrace import kernels
from headrace.commands import shapes
from headrace.meter import Spread
from headrace.weight.assemble import make, places

OURS = ("int2", "int3", "int4", "tmac:bits=1", "tmac:bits=2", "tmac:bits=3", "tmac:bits=4")
PEERS = {"TQ1_0": 1.6875, "TQ2_0": 2.0625}
"""Bits per weight."""
SOURCE = Path(__file__).parents[1] / "peers" / "ggml_products.c"

Turn = Callable[[], float]
"""Multiplies by all matrices once: seconds."""


def matrices(shape: str) -> list[tuple[int, int]]:
    """Outputs and inputs of the products of the first layer."""
    found = [
        size
        for name, size in places(shapes.architecture(shape))[1].items()
        if ".0." in name and len(size) == 2
    ]
    assert found, f"no layer in {shape}"
    return [(size[0], size[1]) for size in found]


def ours(spec: str, sizes: list[tuple[int, int]], rows: int, times: int) -> tuple[Turn, int]:
    """A turn, and the bytes of the weights."""
    calls: list[kernels.Call] = []
    num_bytes = 0
    for outputs, inputs in sizes:
        packing, some = (
            make(spec).start(outputs, inputs, torch.float32),
            torch.randn(1024, inputs),
        )
        for first in range(0, outputs, 1024):
            packing.put(first, some[: outputs - first])
        matrix = packing.finish()
        num_bytes += matrix.nbytes
        with kernels.written_down(calls):
            matrix.multiply(torch.randn(rows, inputs), out_TO=torch.empty(rows, outputs))
    together = kernels.joined(calls)

    def turn() -> float:
        begin = time.perf_counter()
        for _ in range(times):
            for call in together:
                call()
        return (time.perf_counter() - begin) / times

    return turn, num_bytes


@contextmanager
def peer(
    program: Path, name: str, sizes: list[tuple[int, int]], rows: int, given: argparse.Namespace
) -> Iterator[Turn]:
    """A turn of llama.cpp's."""
    words = [
        str(program),
        name,
        str(given.threads),
        str(rows),
        *(f"{outputs}x{inputs}" for outputs, inputs in sizes),
    ]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        ask, answer = process.stdin, process.stdout
        if answer.readline() != "ready\n":
            raise SystemExit(f"{name}: {program.name} does not run")

        def turn() -> float:
            ask.write(f"{given.times}\n")
            ask.flush()
            return float(answer.readline())

        yield turn
        ask.close()


def compiled(ggml: str, folder: str) -> Path:
    headers, libraries = ggml.split(",")
    program = Path(folder) / "ggml_products"
    flags = ["-L", libraries, "-lggml-base", "-lggml-cpu", f"-Wl,-rpath,{libraries}"]
    subprocess.run(["cc", "-O2", "-I", headers, str(SOURCE), *flags, "-o", str(program)], check=True)
    return program


def table(given: argparse.Namespace, rows: int, program: Path | None) -> list[str]:
    """One row count: every format's turn `given.turns` times, in turns."""
    sizes = [given.matrix] if given.matrix else matrices(given.shape)
    weights = sum(outputs * inputs for outputs, inputs in sizes)
    with ExitStack() as stack:
        turns: dict[str, Turn] = {}
        bits = dict(PEERS)
        for spec in OURS:
            turns[spec], num_bytes = ours(spec, sizes, rows, given.times)
            bits[spec] = 8 * num_bytes / weights
        for name in PEERS if program else ():
            turns[name] = stack.enter_context(peer(program, name, sizes, rows, given))
        times: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(given.turns + 2):
            for name, turn in turns.items():
                seconds = turn()
                times[name] += [seconds] if number > 1 else []
    return _lines(rows, times, bits, weights)


def _lines(rows: int, times: dict[str, list[float]], bits: dict[str, float], weights: int) -> list[str]:
    def beside(name: str, other: str) -> str:
        """How many times as fast as another, turn by turn."""
        if other not in times or other == name:
            return ""
        ratio = Spread.of([b / a for a, b in zip(times[name], times[other], strict=True)])
        return f"{ratio.median:.2f}"

    lines = [
        f"\n## {rows} row{'s' * (rows > 1)}\n",
        "| format | bits stored | microseconds | least | GB/s of the least | time of `int` / time | of TQ2_0 / time "
        "| of TQ1_0 / time |\n|---|---|---|---|---|---|---|---|",
    ]
    for name, seconds in times.items():
        spread = Spread.of([1e6 * s for s in seconds])
        rate = bits[name] / 8 * weights / spread.low / 1e3
        width = name.removeprefix("tmac:bits=")
        digits = 0 if spread.low >= 100 else 1
        same = beside(name, "int2" if width == "1" else f"int{width}") if width != name else ""
        lines.append(
            f"| `{name}` | {bits[name]:.3f} | {spread.median:.{digits}f} | {spread.low:.{digits}f} | {rate:.1f} "
            f"| {same} | {beside(name, 'TQ2_0')} | {beside(name, 'TQ1_0')} |"
        )
    one = times["tmac:bits=1"]
    for what, of in (("median", lambda s: Spread.of(s).median), ("least", min)):
        growth = [of(times[f"tmac:bits={b}"]) / of(one) / b for b in (2, 3, 4)]
        shares = ", ".join(f"{ratio:.2f}" for ratio in growth)
        lines.append(f"\nTime of 2, 3, 4 bits over that of so many times 1 bit ({what}): {shares}.  ")
    return lines


def _size(given: str) -> tuple[int, int]:
    outputs, inputs = given.split("x")
    return int(outputs), int(inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--rows", default="1,4")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--matrix", type=_size)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--ggml")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    kernels.set_threads(given.threads)
    given.threads = kernels.threads()
    small = given.matrix and f" --matrix {given.matrix[0]}x{given.matrix[1]} --times {given.times}"
    few = f"A matrix, the mean of {given.times} products in a turn"
    what = few if small else f"The matrices of a layer of {given.shape}"
    lines = [
        "# Looking up beside multiplying\n",
        f"{what}; level {kernels.isa()}, {given.threads} threads, {datetime.date.today()}. Microseconds for all, "
        f"median and least of {given.turns} interleaved turns; ratios are medians of those within a turn. One bit is "
        "compared with `int2`.  ",
        f"`python benchmarks/cases/lut.py{small or f' --shape {given.shape}'} --rows {given.rows} "
        f"--threads {given.threads} --turns {given.turns}`",
    ]
    with tempfile.TemporaryDirectory() as folder:
        program = compiled(given.ggml, folder) if given.ggml else None
        for rows in given.rows.split(","):
            lines += table(given, int(rows), program)
    show("\n".join(lines) + "\n", given.out)


if __name__ == "__main__":
    main()
