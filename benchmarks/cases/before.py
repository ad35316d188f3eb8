"""Does the plain engine pay for what has been added since? Decoding steps of two checkouts, in turns.

    python benchmarks/cases/before.py --before CHECKOUT [--shape llama-3.2-1b] [--batches 1,8,16] [--out FILE]

Each checkout has its own build of the native module, and runs in a process of its own; both hold the same random
weights and sequences of the same length. They take turns of a few steps, the first of a pair being now the one and now
the other, so that whatever else the machine does meets both. A turn counts with its fastest step: what is asked is what
a step costs, not how often it was interrupted.

Target  at most 2 % more
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROMPT, WARM = 64, 8
HERE = Path(__file__).resolve()


class Side:
    """One checkout at work."""

    def __init__(self, root: Path, given: Any, batch: int) -> None:
        steps = str(WARM + given.steps * given.rounds)
        flags = ["--serve", str(batch), "--before", str(root), "--shape", given.shape]
        flags += ["--weights", given.weights, "--steps", steps]
        self._process = subprocess.Popen(
            [sys.executable, str(HERE), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.where = self._ask("")

    def turn(self, steps: int) -> float:
        """Seconds of the fastest of so many steps."""
        return min(map(float, self._ask(str(steps)).split()))

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        if line:
            print(line, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().strip()
        if not answer:
            sys.exit("error: one side ended; what it said is above")
        return answer


def import_from(root: Path) -> None:
    """Nothing else: what is installed for development is found before any path."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
    sys.path.insert(0, str(root))
    for name in ("headrace", "headrace.kernels._native"):
        try:
            found = importlib.import_module(name).__file__
        except ImportError as error:
            sys.exit(f"error: {root} is no built checkout: {error}")
        if not Path(str(found)).is_relative_to(root):
            sys.exit(f"error: {root} is no built checkout: {found} would run instead")


def serve(given: Any) -> None:
    """A number of steps per line of input; their seconds per line of output."""
    import_from(given.before)
    from headrace import kernels
    from headrace.commands.bench import start
    from headrace.config import EngineConfig
    from headrace.params import SamplingParams
    from headrace.types import Request

    batch = given.serve
    # The first one decodes while the others' prompts are computed: with d that decode, 32 - d tokens of them a step.
    length = PROMPT + given.steps + PROMPT * batch.bit_length()
    config = EngineConfig(stack={"weights": given.weights}, prefix_cache=False)
    engine = start(config, given.shape, [(batch, PROMPT, length - PROMPT)])
    draw, params = random.Random(1), SamplingParams(temperature=0, ignore_eos=True)
    for name in range(batch):
        prompt = tuple(draw.choices(range(engine.architecture.vocab), k=PROMPT))
        engine.add(Request(id=str(name), prompt=prompt, params=params))
    while any(seq.num_computed < PROMPT for seq in engine.queues):
        engine.step()
    for _ in range(WARM):
        engine.step()
    print(f"level {kernels.isa()}, {kernels.threads()} threads", flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            begin = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - begin)
        print(*times, flush=True)


def compare(given: Any, batch: int) -> tuple[str, list[float], list[float]]:
    """Where, and seconds of each turn: before, and now."""
    sides = [Side(root, given, batch) for root in (given.before.resolve(), HERE.parents[2])]
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(given.rounds):
        for index in (0, 1) if number % 2 else (1, 0):
            found[index].append(sides[index].turn(given.steps))
    for side in sides:
        side.close()
    return sides[1].where, *found


def interval(ratios: list[float]) -> tuple[float, float]:
    """95 % of the median, from resampled turns."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
    return medians[50], medians[-51]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", type=Path, help="the other checkout, built")
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--batches", default="1,8,16")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=6, help="of a turn")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.serve:
        serve(given)
        return
    if given.before is None:
        parser.error("--before CHECKOUT is missing")
    report(given)


def report(given: Any) -> None:
    from result import show

    from headrace.meter import Spread

    rows, where = [], ""
    for batch in map(int, given.batches.split(",")):
        where, before, now = compare(given, batch)
        ratios = [b / a for a, b in zip(before, now, strict=True)]
        old, new = (Spread.of([1000 * t for t in times]) for times in (before, now))
        low, high = interval(ratios)
        rows.append(
            f"| {batch} | {old:.2f} | {new:.2f} | **{statistics.median(ratios):.3f}** | {low:.3f}-{high:.3f} |"
        )
    text = (
        f"# The plain engine, before and now\n\n{platform.machine()}, {where}, {datetime.date.today()}.  \n"
        f"`python benchmarks/cases/before.py --before CHECKOUT --shape {given.shape} --weights {given.weights} "
        f"--batches {given.batches} --rounds {given.rounds} --steps {given.steps}`\n\n"
        f"Random weights of {given.shape}, `{given.weights}`; decoding steps of sequences that begin with {PROMPT} "
        f"tokens. {given.rounds} turns of {given.steps} steps each, of which the fastest counts: median "
        "(lowest-highest) in ms. Ratio: now over before, the median over turns; 95 % interval from resampled turns.\n\n"
        "| batch | before, ms | now, ms | ratio | interval |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )
    show(text, given.out)


if __name__ == "__main__":
    main()
