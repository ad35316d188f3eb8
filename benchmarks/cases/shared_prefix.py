"""What does a prefix that many requests share cost? Decoding steps with its pages shared, and with copies of them.

The same requests by turns in one engine: as they come, all list the pages of their common prefix; then each gets copies
of its own. Attention is what the KV cache does in a step: the rest is the same.

    python benchmarks/cases/shared_prefix.py [--shape llama-3.2-1b] [--weights int4] [--prefix 4096] [--batch 16]
        [--out FILE]

Claim   https://arxiv.org/abs/2402.05099 (Hydragen): attention over a shared prefix becomes a product of matrices
Target  attention at least five times as fast, and the same tokens
"""

from __future__ import annotations

import argparse
import datetime
import platform
import random
import statistics
import time
from pathlib import Path
from typing import Any

from result import show

from headrace import kernels, limits
from headrace.commands.bench import start
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.forward.recording import MOST_ROWS
from headrace.kv.pool import FREED
from headrace.meter import Spread
from headrace.types import Request, SamplingParams

CODECS = ("plain", "bf16", "int8")
OWN, WARM = 32, 3
"""Tokens of a prompt after the prefix; steps before it counts."""


class Clock:
    """Seconds that an engine's KV cache has worked."""

    def __init__(self, engine: Engine) -> None:
        self.seconds, self._attend = 0.0, engine.kv.attend
        engine.kv.attend = self.attend  # type: ignore[method-assign]

    def attend(self, *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = self._attend(*arguments)
        self.seconds += time.perf_counter() - begin
        return result


def unshare(engine: Engine) -> None:
    """Every running sequence holds a copy of its own of each page that it shares."""
    tables = engine.kv.tables
    for seq in engine.queues:
        for group in range(len(tables.groups)):
            pages = tables.live_pages(seq.id, group)
            for index, page in enumerate(pages):
                if page != FREED and tables.pool.is_shared(page):
                    pages[index] = tables.pool.take()
                    tables.pool.copy(page, pages[index])
                    tables.pool.drop(page)


def decode(
    engine: Engine, given: Any, shared: bool
) -> tuple[list[float], list[float], dict[str, tuple[int, ...]]]:
    """Seconds of each step, those of attention in it, and what was said in all."""
    draw, vocab = random.Random(0), range(engine.architecture.vocab)
    prefix = tuple(draw.choices(vocab, k=given.prefix))
    params = SamplingParams(temperature=0, max_tokens=4 * given.batch + WARM + given.steps, ignore_eos=True)
    for i in range(given.batch):
        prompt = prefix + tuple(draw.choices(vocab, k=OWN))
        engine.add(Request(id=str(i), prompt=prompt, params=params))
        while any(seq.num_computed < seq.prompt_len for seq in engine.queues):
            engine.step()
    if not shared:
        unshare(engine)
    clock, whole, attention = Clock(engine), [], []
    for _ in range(WARM + given.steps):
        begin, before = time.perf_counter(), clock.seconds
        engine.step()
        whole.append(time.perf_counter() - begin)
        attention.append(clock.seconds - before)
    del engine.kv.attend
    said = {seq.request.id: tuple(seq.tokens) for seq in engine.queues}
    for i in range(given.batch):
        engine.cancel(str(i))
    return whole[WARM:], attention[WARM:], said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--prefix", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.batch <= MOST_ROWS:
        parser.error(
            f"--batch {given.batch}: steps of up to {MOST_ROWS} rows are played as one call: give more"
        )
    rows = []
    for codec in CODECS:
        stack = {"weights": given.weights, "kv-codec": codec, "policy": "sarathi:tokens=512,idle=512"}
        config = EngineConfig(stack=stack, max_seqs=given.batch)
        engine = start(config, given.shape, [(given.batch + 1, given.prefix + OWN, 6 * given.batch)])
        found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        for _ in range(given.repetitions):
            said = []
            for shared in found:
                whole, attention, tokens = decode(engine, given, shared)
                found[shared].append((statistics.median(whole), statistics.median(attention)))
                said.append(tokens)
            assert said[0] == said[1], "the tokens differ"
        rows.append(row(codec, found))
        engine.close()
    show(report(given, rows, engine), given.out)


def row(codec: str, found: dict[bool, list[tuple[float, float]]]) -> str:
    cells = [codec]
    for which in (1, 0):  # attention, then the whole step
        with_, without = ([pair[which] for pair in found[shared]] for shared in (True, False))
        ratio = Spread.of([b / a for a, b in zip(with_, without, strict=True)])
        cells += [f"{1000 * statistics.median(without):.0f}", f"{1000 * statistics.median(with_):.0f}"]
        cells.append(f"**{ratio.median:.2f}x** ({ratio.low:.2f}-{ratio.high:.2f})")
    return f"| {' | '.join(cells)} |"


def report(given: Any, rows: list[str], engine: Engine) -> str:
    spec = engine.architecture.blocks[0].attention
    layers, rates = len(engine.architecture.blocks), limits.measure()
    operations = 4 * given.batch * given.prefix * spec.heads * spec.head_size * layers
    least = 1000 * operations / rates.float32
    return "\n".join(
        [
            "# A prefix that requests share",
            f"{platform.machine()}, level {kernels.isa()}, {kernels.threads()} threads, {datetime.date.today()}.  \n"
            f"`python benchmarks/cases/shared_prefix.py --shape {given.shape} --weights {given.weights} --prefix "
            f"{given.prefix} --batch {given.batch}`",
            "",
            f"A decoding step of {given.batch} requests, the first {given.prefix} tokens of each the same; "
            f"milliseconds, medians of {given.repetitions} turns each, alternating. Tokens were identical.",
            "",
            "| keys and values | attention, copies | shared | faster | step, copies | shared | faster |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"The prefix's multiply-adds alone take {least:.0f} ms at this machine's {rates.float32 / 1e9:.0f} GOP/s "
            "of float32.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
