"""What a decoding step spends outside native kernels: Python, dispatch, scheduler, sampler.

Every native function is wrapped in a clock, and so is every stage of a step. What a stage takes beyond its native calls
is overhead, the clocks among it. A recorded pass is played back as one native call, but with a clock around each of its
kernels: what passes between two of them counts as overhead. What counts as the kernel's is the call itself, in which it
checks what lies in memory (page numbers, positions), wakes the thread pool and waits for it.

    python benchmarks/cases/overhead.py [--shape qwen2.5-0.5b] [--weights int4] [--batch 1] [--repeats 5] [--out FILE]

Target  at most 8 % of a step at batch 1
"""

from __future__ import annotations

import argparse
import datetime
import functools
import platform
import random
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from result import show

from headrace import kernels
from headrace.commands.bench import start
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.meter import Spread
from headrace.params import SamplingParams
from headrace.types import Request

WARM = 8
STAGES = ("plan", "reserve", "batch", "forward", "sample", "commit")


class Clock:
    """Seconds per native function and per stage, of one step; a nested call counts for itself alone."""

    def __init__(self) -> None:
        self.native: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.stages: dict[str, float] = defaultdict(float)

    def reset(self) -> None:
        for table in (self.native, self.calls, self.stages):
            table.clear()

    def of_native(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments)
            self.native[name] += time.perf_counter() - begin
            self.calls[name] += 1
            return result

        return timed

    def of_played(self, calls: Any) -> Callable[[], None]:
        def timed() -> None:
            for name, (count, seconds) in calls.time().items():
                self.native[name] += seconds
                self.calls[name] += count

        return timed

    def of_stage(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            inside, begin = sum(self.native.values()), time.perf_counter()
            result = function(*arguments)
            spent = time.perf_counter() - begin
            self.stages[name] += spent - (sum(self.native.values()) - inside)
            return result

        return timed


def watch(engine: Engine, clock: Clock) -> None:
    """Puts the clocks in: for this process's whole life."""
    import headrace.forward.lane as module

    find, join = kernels._find, kernels.joined

    @functools.cache
    def timed(operation: str, level: str) -> tuple[str, Callable[..., Any] | None]:
        found, function = find(operation, level)
        return found, clock.of_native(operation, function) if function else None

    def joined(calls: list[kernels.Call]) -> list[kernels.Call]:
        return [clock.of_played(call) if hasattr(call, "time") else call for call in join(calls)]

    kernels._find, kernels.joined = timed, joined
    module.Lane.plan = clock.of_stage("plan", module.Lane.plan)
    engine.kv.reserve = clock.of_stage("reserve", engine.kv.reserve)
    module.build_batch = clock.of_stage("batch", module.build_batch)
    engine.runner.forward = clock.of_stage("forward", engine.runner.forward)
    type(engine.sampler).__call__ = clock.of_stage("sample", type(engine.sampler).__call__)
    engine.commit = clock.of_stage("commit", engine.commit)


def read(engine: Engine, clock: Clock, batch: int, prompt_len: int, steps: int) -> list[tuple[float, Clock]]:
    """Seconds of each decoding step, and what the clocks said of it."""
    draw = random.Random(0)
    params = SamplingParams(temperature=0, max_tokens=steps + WARM + 1, ignore_eos=True)
    vocab = range(engine.architecture.vocab)
    for i in range(batch):
        engine.add(Request(id=str(i), prompt=tuple(draw.choices(vocab, k=prompt_len)), params=params))
    readings: list[tuple[float, Clock]] = []
    decoding = False
    while engine.busy:
        clock.reset()
        begin = time.perf_counter()
        deltas = engine.step()
        seconds = time.perf_counter() - begin
        if decoding:
            kept = Clock()
            kept.native.update(clock.native), kept.calls.update(clock.calls), kept.stages.update(clock.stages)
            readings.append((seconds, kept))
        decoding = len(deltas) == batch
    return readings[WARM:]


def share(readings: list[tuple[float, Clock]]) -> Spread:
    """What lies outside native kernels, of each step."""
    return Spread.of([1 - sum(clock.native.values()) / seconds for seconds, clock in readings])


def report(repeats: list[list[tuple[float, Clock]]], header: str) -> str:
    """Markdown: the share of each repetition; medians (lowest-highest) over the steps of all."""

    def cell(values: list[float]) -> str:
        return f"{Spread.of([value * 1e6 for value in values]):.0f}"

    readings = [reading for repeat in repeats for reading in repeat]
    steps = [seconds for seconds, _ in readings]
    native = [sum(clock.native.values()) for _, clock in readings]
    outside = [total - inside for total, inside in zip(steps, native, strict=True)]
    middle = Spread.of(steps).median
    medians = [share(repeat).median for repeat in repeats]
    every = share(readings)
    lines = [
        "# What a decoding step spends outside native kernels",
        header,
        f"**{every.median:.1%}** of a step (median of {len(steps)} steps; single ones {every.low:.1%} to "
        f"{every.high:.1%}).  \nMedians of {len(repeats)} repetitions: {', '.join(f'{m:.1%}' for m in medians)}.",
        "| part | calls | microseconds per step | of the step |\n|---|---|---|---|",
    ]
    rows = [("the step", "", steps), ("native kernels", "", native), ("outside", "", outside)]
    for name in sorted(
        readings[0][1].native, key=lambda n: -Spread.of([c.native[n] for _, c in readings]).median
    ):
        rows.append(
            (f"native `{name}`", str(readings[0][1].calls[name]), [c.native[name] for _, c in readings])
        )
    rows += [(f"outside, {stage}", "", [c.stages[stage] for _, c in readings]) for stage in STAGES]
    for name, calls, values in rows:
        lines[-1] += f"\n| {name} | {calls} | {cell(values)} | {Spread.of(values).median / middle:.1%} |"
    return "\n\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="qwen2.5-0.5b")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--kv-codec", default="bf16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    config = EngineConfig(stack={"weights": given.weights, "kv-codec": given.kv_codec})
    engine = start(config, given.shape, [(given.batch, given.prompt_len, given.steps + WARM + 1)])
    clock = Clock()
    watch(engine, clock)
    repeats = [read(engine, clock, given.batch, given.prompt_len, given.steps) for _ in range(given.repeats)]
    header = (
        f"{platform.machine()}, level {kernels.isa()}, {kernels.threads()} threads, {datetime.date.today()}.  \n"
        f"`python benchmarks/cases/overhead.py --shape {given.shape} --weights {given.weights} "
        f"--kv-codec {given.kv_codec} --batch {given.batch} --prompt-len {given.prompt_len} --steps {given.steps} "
        f"--repeats {given.repeats}`"
    )
    text = report(repeats, header)
    show(text, given.out)


if __name__ == "__main__":
    main()
