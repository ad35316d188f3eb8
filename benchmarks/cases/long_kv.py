"""What do keys and values cost in a long context? Decoding steps with each codec, and how many requests a pool admits.

Nobody waits for a prefill of 128k tokens here: a short prompt is computed, and its pages are copied until the context
is full. Steps read as many bytes as they would, and compute the same; only the text makes no sense.

    python benchmarks/cases/long_kv.py [--shape llama-3.2-1b] [--weights int4] [--context 32768] [--batch 4]
        [--out FILE]

Claim   https://arxiv.org/abs/2402.02750 (KIVI): 2.35 to 3.47 times the throughput, 2.6 times less peak memory
Target  kivi:bits=4 decodes at least twice as fast as bf16, and a pool admits at least three times the requests of 2k
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import platform
import random
import statistics
import time
from pathlib import Path
from typing import Any

from result import show

from headrace import kernels
from headrace.commands import shapes
from headrace.commands.bench import start
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.forward.decoder import Decoder
from headrace.forward.load import random as random_decoder
from headrace.forward.memory import pages_for
from headrace.kv.pool import FREED
from headrace.meter import Spread
from headrace.types import Request, SamplingParams, Status

CODECS = ("bf16", "int8", "kivi", "kivi:bits=2")
PROMPT, WARM = 256, 3
POOL, SHORT = 1 << 30, 2048
"""Bytes of the pool that is filled with requests of so many tokens."""


def lengthen(engine: Engine, context: int) -> None:
    """Every running sequence goes on as if it had `context` tokens: further pages are copies of one that it has."""
    tables, draw = engine.kv.tables, random.Random(0)
    vocab, groups, chunk = engine.architecture.vocab, range(len(tables.groups)), 64
    for seq in engine.queues:
        live = [[p for p in tables.live_pages(seq.id, g) if p != FREED] for g in groups]
        models = [tables.pool.arena_PX[pages].clone() for pages in live]
        seq.tokens += draw.choices(range(vocab), k=context - len(seq))
        while seq.num_computed < context - 1:
            stop = min(seq.num_computed + chunk, context - 1)
            before = [set(tables.live_pages(seq.id, g)) for g in groups]
            tables.reserve(seq.id, seq.num_computed, stop)
            for group in groups:
                for page in set(tables.live_pages(seq.id, group)) - before[group]:
                    tables.pool.arena_PX[page] = models[group][page % len(models[group])]
            seq.num_computed = stop
            tables.advance(seq.id, seq.tokens, stop)


def steps(engine: Engine, batch: int, context: int, count: int) -> list[float]:
    """Seconds of decoding steps at the end of the context."""
    draw = random.Random(1)
    params = SamplingParams(temperature=0, ignore_eos=True)
    for i in range(batch):
        prompt = tuple(draw.choices(range(engine.architecture.vocab), k=PROMPT))
        engine.add(Request(id=str(i), prompt=prompt, params=params))
    while any(seq.status is not Status.RUNNING or seq.num_computed < PROMPT for seq in engine.queues):
        engine.step()
    lengthen(engine, context)
    found = []
    for _ in range(WARM + count):
        begin = time.perf_counter()
        engine.step()
        found.append(time.perf_counter() - begin)
    for i in range(batch):
        engine.cancel(str(i))
    return found[WARM:]


def admitted(engine: Engine) -> int:
    """Requests of SHORT tokens that run at once in a pool of POOL bytes, by the engine's own arithmetic."""
    tables, view = engine.kv.tables, engine.queues.view(engine.kv.tables, False).cache
    pages = POOL // tables.sizes.page_bytes
    chunk = engine.policy.longest_span or SHORT
    empty = tables.hit([0], "")
    peak, count = view.reach(empty, SHORT, chunk), 0
    steady = sum(
        -(-sum(b - a for a, b in group.kept(SHORT)) // tokens)
        if group.holds == "rest"
        else -(-SHORT // tokens)
        for group, tokens in zip(tables.groups, tables.sizes.tokens, strict=True)
    )
    while count * steady + peak <= pages:
        count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    room = given.context + WARM + given.steps + 8
    decoder = _decoder(given, room)
    found: dict[str, list[float]] = {codec: [] for codec in CODECS}
    facts: dict[str, tuple[float, int]] = {}
    for _ in range(given.repetitions):
        for codec in CODECS:
            engine = _engine(given, decoder, codec, room)
            found[codec].append(statistics.median(steps(engine, given.batch, given.context, given.steps)))
            facts[codec] = (engine.kv.bytes_per_token(), admitted(engine))
            engine.close()
            del engine  # its pool: one at a time
    show(report(given, found, facts), given.out)


def _decoder(given: Any, room: int) -> Decoder:
    """Random weights of the shape, for a longer context than the shape has where it must be."""
    first = start(EngineConfig(stack={"weights": given.weights}), given.shape, [(1, 64, 8)])
    shape = dataclasses.replace(shapes.architecture(given.shape), context=room)
    form = first.stack.one("weights")
    return random_decoder(shape, 0, first.decoder.dtype, first.device, form=form)


def _engine(given: Any, decoder: Decoder, codec: str, room: int) -> Engine:
    config = EngineConfig(
        stack={"weights": given.weights, "kv-codec": codec, "policy": "sarathi:tokens=64,idle=64"},
        model=given.shape,
        prefix_cache=False,
    )
    size = given.batch * pool_bytes(config, decoder, room)
    return Engine(dataclasses.replace(config, kv_bytes=size), decoder=decoder)


def pool_bytes(config: EngineConfig, decoder: Decoder, room: int) -> int:
    """Of a pool for one sequence of `room` tokens, in spans of 64 at most."""
    small = dataclasses.replace(config, kv_bytes=1 << 28, context=1024)
    tables = Engine(small, decoder=decoder).kv.tables
    return (pages_for(tables.groups, tables.sizes, room, 64) + 4) * tables.sizes.page_bytes


def report(given: Any, found: dict[str, list[float]], facts: dict[str, tuple[float, int]]) -> str:
    lines = [
        "# Keys and values in a long context",
        f"{platform.machine()}, level {kernels.isa()}, {kernels.threads()} threads, {datetime.date.today()}.  \n"
        f"`python benchmarks/cases/long_kv.py --shape {given.shape} --weights {given.weights} --context "
        f"{given.context} --batch {given.batch} --steps {given.steps} --repetitions {given.repetitions}`",
        f"Random weights; decoding at the end of {given.context} tokens, {given.batch} sequences. {given.repetitions} "
        f"repetitions in turns: median (lowest-highest); ratios within a repetition. Admitted: requests of {SHORT} "
        f"tokens in a pool of {POOL >> 20} MiB.",
        "| KV codec | ms per step | speed of bf16 | bytes per token | admitted |\n|---|---|---|---|---|",
    ]
    for codec, seconds in found.items():
        ratio = Spread.of([a / b for a, b in zip(found["bf16"], seconds, strict=True)])
        ms, (size, count) = Spread.of([1000 * value for value in seconds]), facts[codec]
        times = count / facts["bf16"][1]
        lines[-1] += f"\n| `{codec}` | {ms:.1f} | **{ratio:.2f}x** | {size:.0f} | {count} ({times:.2f}x) |"
    return "\n\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
