"""Is what lies far back still found when a step reads a quarter of it, and how much faster is the step?

    python benchmarks/cases/page_choice.py [--n 50] [--shape llama-3.2-1b] [--context 16384] [--out FILE]

Two tables. Passkeys of the box, on `tiny`: a key in 830 words of filler, asked for at the end; the answer's tokens come
one by one, each from what its stack reads. And decoding steps at the end of a long context, whose pages are copies of
those of a short prompt (see long_kv.py).

Claim   https://arxiv.org/abs/2406.10774 (Quest): attention up to 7 times as fast, with negligible loss
Target  at a quarter, at least 90 % of the passkeys that the plain stack finds; streaming fails
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from long_kv import PROMPT, WARM, _decoder, lengthen, pool_bytes
from result import show

from headrace import kernels
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.meter import Spread
from headrace.params import SamplingParams
from headrace.types import Request, Status

QUARTER = (
    "",
    "--kv-selector landmarks:least=64,dense=0",
    "--kv-selector squeezed:least=64",
    "--kv-keeper streaming:sink=16,window=240",
    "--kv-layout duo:profile={profile},share=0.25,sink=16,window=64",
    "--kv-selector vslash:vertical=128,slash=64,recent=64 --policy orca --no-prefix-cache",
    "--kv-selector landmarks:least=64,dense=0,share=0.125",
    "--kv-selector squeezed:least=64,share=0.125",
)
"""Of about 1,000 tokens, each reads some 250."""
STACKS = ("everything", "landmarks", "landmarks:dense=0", "squeezed")


def passkeys(count: int) -> Iterator[tuple[str, float, float, float]]:
    """(stack, share found, its interval)."""
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "heads.json"
        headrace = [sys.executable, "-m", "headrace"]
        subprocess.run(
            [*headrace, "profile", "--model", "tiny", "--out", str(profile), "--quiet"], check=True
        )
        for stack in QUARTER:
            flags = f"--tasks passkey --n {count} --json --quiet {stack.format(profile=profile)}"
            run = subprocess.run([*headrace, "eval", *flags.split()], check=True, stdout=subprocess.PIPE)
            [row] = json.loads(run.stdout)
            yield stack.format(profile="FILE"), row["value"], row["low"], row["high"]


def steps(engine: Engine, context: int, count: int) -> tuple[float, float]:
    """Median of decoding steps at the end of the context: seconds, and those of the processor."""
    begin(engine)
    lengthen(engine, context)
    found = []
    for _ in range(WARM + count):
        since = time.perf_counter(), time.process_time()
        engine.step()
        found.append((time.perf_counter() - since[0], time.process_time() - since[1]))
    walls, busy = zip(*found[WARM:], strict=True)
    return statistics.median(walls), statistics.median(busy)


def configured(given: Any, selector: str) -> EngineConfig:
    """For one sequence, all of whose pages are its own."""
    stack = {"weights": given.weights, "kv-codec": given.codec, "kv-selector": selector}
    return EngineConfig(
        stack={**stack, "policy": "sarathi:tokens=64,idle=64"},
        model=given.shape,
        prefix_cache=False,
        page_tokens=given.page_tokens,
        threads=given.threads,
    )


def begin(engine: Engine) -> None:
    """A sequence whose prompt is computed."""
    draw = random.Random(1)
    prompt = tuple(draw.choices(range(engine.architecture.vocab), k=PROMPT))
    engine.add(Request(id="r", prompt=prompt, params=SamplingParams(temperature=0, ignore_eos=True)))
    while not any(seq.status is Status.RUNNING and seq.num_computed >= PROMPT for seq in engine.queues):
        engine.step()


def decoding(given: Any) -> tuple[dict[str, list[tuple[float, float]]], dict[str, float]]:
    """Seconds of a step, and of the processor, per stack and repetition; bytes per token."""
    room = given.context + WARM + given.steps + 8
    decoder = _decoder(given, room)
    found: dict[str, list[tuple[float, float]]] = {stack: [] for stack in STACKS}
    sizes: dict[str, float] = {}
    for _ in range(given.repetitions):
        for stack in STACKS:
            config = configured(given, stack)
            large = dataclasses.replace(config, kv_bytes=pool_bytes(config, decoder, room))
            engine = Engine(large, decoder=decoder)
            found[stack].append(steps(engine, given.context, given.steps))
            sizes[stack] = engine.kv.bytes_per_token()
            engine.close()
            del engine  # its pool: one at a time
    return found, sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--codec", default="bf16")
    parser.add_argument("--context", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--page-tokens", type=int, default=16)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found, sizes = decoding(given)
    show(report(given, list(passkeys(given.n)) if given.n else [], found, sizes), given.out)


def report(
    given: Any,
    keys: list[tuple[str, float, float, float]],
    found: dict[str, list[tuple[float, float]]],
    sizes: dict[str, float],
) -> str:
    lines = [
        "# Reading a quarter of the context",
        f"{platform.machine()}, level {kernels.isa()}, {kernels.threads()} threads, {datetime.date.today()}.  \n"
        f"`python benchmarks/cases/page_choice.py --n {given.n} --shape {given.shape} --weights {given.weights} "
        f"--codec {given.codec} --context {given.context} --steps {given.steps} --repetitions {given.repetitions} "
        f"--threads {given.threads} --page-tokens {given.page_tokens}`",
        f"Passkeys found, of {given.n} on `tiny`: about 1,020 tokens each, greedy, seed 0.",
        "| stack | found | 95 % interval |\n|---|---|---|",
    ]
    for stack, value, low, high in keys:
        lines[-1] += f"\n| `{stack or 'plain'}` | {value:.2f} | {low:.2f}-{high:.2f} |"
    lines += [
        f"Decoding at the end of {given.context} tokens, one sequence, {given.threads or 'all'} threads, pages of "
        f"{given.page_tokens} tokens, random "
        f"weights. {given.repetitions} repetitions in turns: median (lowest-highest); ratios within a repetition. "
        "Busy: the processor's time, whatever else the machine did.",
        "| KV selector | ms per step | busy, ms | speed of plain | by busy time | bytes per token |\n"
        "|---|---|---|---|---|---|",
    ]
    for stack, seconds in found.items():
        pairs = list(zip(found["everything"], seconds, strict=True))
        wall, busy = (Spread.of([1000 * value[i] for value in seconds]) for i in (0, 1))
        faster, less = (Spread.of([a[i] / b[i] for a, b in pairs]) for i in (0, 1))
        lines[-1] += (
            f"\n| `{stack}` | {wall:.1f} | {busy:.1f} | {faster:.2f}x | **{less:.2f}x** | {sizes[stack]:.0f} |"
        )
    return "\n\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
