"""What does a step cost whose keys and values lie on disk? Decoding at the end of a long context, a quarter in memory.

The context is not computed: its keys and values are drawn, and written through the cache, layer after layer. What a
step reads anew depends on how much of its choice is that of the step before: over drawn keys of one size, little; so
keys of a page have a size of their own, drawn with `--spread`, that a selector prefers. The share that is new is
reported, beside that over text, on the model in the box.

    python benchmarks/cases/offload.py [--shape llama-3.2-1b] [--weights int4] [--context 32768] [--part 0.25]
        [--page-tokens 64] [--spread 0.04] [--folder /var/tmp] [--out FILE]

Claim   https://arxiv.org/abs/2506.20187 (LeoAM): 3.46 times the speed of offloading everything
Target  the bytes that a step reads fall with what it chooses; at least three times as fast as reading everything
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

import torch
from long_kv import WARM, _decoder, pool_bytes
from page_choice import begin, configured
from result import show

from headrace import box, kernels
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.kv.selection import Selecting
from headrace.meter import Spread
from headrace.params import SamplingParams
from headrace.text.tokenizer import Tokenizer
from headrace.types import Request

SELECTORS = ("everything", "landmarks:dense=0", "landmarks:dense=0,share=0.0625")
CHUNK = 1024
Found = dict[tuple[str, str], list[tuple[float, float, float]]]
"""Per selector and tier, of each repetition: seconds of a step, bytes that it reads, and the share of its choice that
is new."""


class Watch:
    """Of what a step chooses, the share that the step before did not, of one sequence, layer by layer."""

    def __init__(self, engine: Engine) -> None:
        self.shares: list[float] = []
        self._before: dict[int, Any] = {}
        for selection in engine.kv._selections.values():
            self._select = selection._live.select
            selection._live.select = self._watched  # type: ignore[method-assign]

    def _watched(self, arena: Any, layer: int, queries: Any, selecting: Any) -> Any:
        mask_GCB = self._select(arena, layer, queries, selecting)
        if mask_GCB is not None:
            now, before = mask_GCB[:, 0].numpy().copy(), self._before.get(layer)
            if before is not None:
                self.shares.append(float(1 - (now[:, : before.shape[1]] & before).sum() / now.sum()))
            self._before[layer] = now
        return mask_GCB

    @property
    def mean(self) -> float:
        return statistics.mean(self.shares) if self.shares else 0.0


def fill(engine: Engine, context: int, spread: float) -> None:
    """The running sequence goes on as if it had `context` tokens, with keys and values that are drawn."""
    kv, draw = engine.kv, torch.Generator().manual_seed(0)
    tables, arena = kv.tables, kv.tables.pool.arena_PX
    [seq] = engine.queues
    seq.tokens += random.Random(0).choices(range(engine.architecture.vocab), k=context - len(seq))
    first, stop, size = seq.num_computed, context - 1, tables.sizes.tokens[0]
    tables.reserve(seq.id, first, stop)
    slots_T = torch.tensor(kv._slots(0, seq.id, first, stop))
    for layer, block in enumerate(engine.architecture.blocks):
        shape = (CHUNK, block.attention.kv_heads, block.attention.head_size)
        for own_T in slots_T.split(CHUNK):
            k_TGH, v_TGH = (torch.randn(shape, generator=draw)[: len(own_T)] for _ in range(2))
            pages = -(-len(own_T) // size)
            sizes_PG1 = (spread * torch.randn(pages, shape[1], 1, generator=draw)).exp()
            k_TGH *= sizes_PG1.repeat_interleave(size, 0)[: len(own_T)]
            kv._live[0].write(arena, layer, k_TGH, v_TGH, own_T)
            if 0 in kv._selections:
                kv._selections[0].index(
                    arena, layer, Selecting(size, own_T[own_T % size == size - 1] // size)
                )
    seq.num_computed = stop
    tables.advance(seq.id, seq.tokens, stop)


def steps(engine: Engine, given: Any) -> tuple[float, float, float]:
    """Of decoding steps at the end of the context: see Found."""
    begin(engine)
    fill(engine, given.context, given.spread)
    found = []
    for number in range(WARM + given.steps):
        if number == WARM:
            before = engine.stats().counters.tier_read_bytes
        since = time.perf_counter()
        engine.step()
        found.append(time.perf_counter() - since)
    read = (engine.stats().counters.tier_read_bytes - before) / given.steps
    watch = Watch(engine)
    for _ in range(4):
        engine.step()
    return statistics.median(found[WARM:]), read, watch.mean


def decoding(given: Any) -> tuple[Found, int, int]:
    """What was found; bytes of the pool, and of them in memory."""
    room = given.context + WARM + given.steps + 16
    decoder = _decoder(given, room)
    found: Found = {}
    for _ in range(given.repetitions):
        for selector in SELECTORS:
            for tier in ("", "offload"):
                engine, size, memory = _engine(given, decoder, selector, tier, room)
                found.setdefault((selector, tier), []).append(steps(engine, given))
                engine.close()
                del engine  # its pool: one at a time
    return found, size, memory


def _engine(given: Any, decoder: Any, selector: str, tier: str, room: int) -> tuple[Engine, int, int]:
    config = configured(given, selector)
    size = pool_bytes(config, decoder, room)
    memory = int(given.part * size)
    stack = {**config.stack}
    if tier:
        stack["kv-tier"] = f"offload:memory={memory},folder={given.folder}"
    return Engine(dataclasses.replace(config, stack=stack, kv_bytes=size), decoder=decoder), size, memory


def over_text(given: Any) -> float:
    """The share of a step's choice that is new: of a quarter of 1,000 tokens and more, on `tiny`."""
    stack = {"kv-selector": "landmarks:dense=0,least=64", "policy": "sarathi:tokens=64,idle=64"}
    engine = Engine(EngineConfig(stack=stack, threads=given.threads))
    assert engine.path is not None
    ids = Tokenizer(engine.path).encode(box.held_out_text()[:20_000])[:1000]
    watch = Watch(engine)
    params = SamplingParams(temperature=0.7, seed=0, max_tokens=200, ignore_eos=True)
    engine.add(Request(id="t", prompt=tuple(ids), params=params))
    while engine.busy:
        engine.step()
    engine.close()
    return watch.mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--codec", default="bf16")
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--part", type=float, default=0.25)
    parser.add_argument("--page-tokens", type=int, default=64)
    parser.add_argument("--spread", type=float, default=0.04)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--folder", default="/var/tmp")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found, size, memory = decoding(given)
    show(report(given, found, size, memory, over_text(given)), given.out)


def report(given: Any, found: Found, size: int, memory: int, text: float) -> str:
    lines = [
        "# Keys and values on disk, a quarter of them in memory",
        f"{platform.machine()}, level {kernels.isa()}, {kernels.threads()} threads, {datetime.date.today()}.  \n"
        f"`python benchmarks/cases/offload.py --shape {given.shape} --weights {given.weights} --codec {given.codec} "
        f"--context {given.context} --part {given.part} --page-tokens {given.page_tokens} --spread {given.spread} "
        f"--steps {given.steps} --repetitions {given.repetitions}`",
        f"Decoding at the end of {given.context} tokens, one sequence, random weights, keys and values that are drawn. "
        f"A pool of {size / 1e6:.0f} MB, of which {memory / 1e6:.0f} may be in memory with the selector's summaries. "
        f"Reads are direct, past the page cache. {given.repetitions} repetitions in turns, the median of {given.steps} "
        "steps in each: median (lowest-highest); ratios within a repetition. New: of what a layer's heads choose, what "
        f"they had not chosen the step before; over text, on `tiny`, that is {100 * text:.0f} %.",
        "| KV selector | KV tier | ms per step | MB read per step | new | speed of reading everything from disk |\n"
        "|---|---|---|---|---|---|",
    ]
    every = [seconds for seconds, _, _ in found["everything", "offload"]]
    for (selector, tier), values in found.items():
        ms = Spread.of([1000 * seconds for seconds, _, _ in values])
        read = Spread.of([count / 1e6 for _, count, _ in values])
        ratio = Spread.of([a / b for a, (b, _, _) in zip(every, values, strict=True)])
        new = 100 * statistics.mean(share for _, _, share in values)
        lines[-1] += (
            f"\n| `{selector}` | {tier or 'none'} | {ms:.0f} | {read:.0f} | {f'{new:.0f} %' if new else '-'} | "
            f"**{ratio:.2f}x** |"
        )
    return "\n\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
