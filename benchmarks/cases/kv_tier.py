"""What is a tier worth? Time to the first token of a prompt that another drove out of the pool, with it and without.

Two prompts by turns in a pool that holds one of them: each comes back from the tier, all but its last token. `computed`
is each prompt's first time, in the same engine. A file is read from the system's page cache, unless that is emptied of
it before each turn (`cold`).

    python benchmarks/cases/kv_tier.py [--shape llama-3.2-1b] [--weights int4] [--prompt 2048] [--folder /var/tmp]
        [--out FILE]

Claim   https://arxiv.org/abs/2403.19708 (AttentionStore): time to the first token down by up to 87%
Target  a tenth of the time, and the same tokens
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import random
import statistics
import time
from pathlib import Path
from typing import Any

from result import show

from headrace import kernels
from headrace.commands.bench import start
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.forward.memory import pages_for
from headrace.meter import Spread
from headrace.types import Request, SamplingParams

CODECS = ("plain", "int8")
GENERATED = 4


def ask(engine: Engine, prompt: tuple[int, ...]) -> tuple[float, list[int]]:
    """Milliseconds to the first token, and the tokens."""
    params = SamplingParams(temperature=0, max_tokens=GENERATED, ignore_eos=True)
    engine.add(Request(id="a", prompt=prompt, params=params))
    first, said, began = 0.0, list[int](), time.perf_counter()
    while engine.busy:
        said += [token for delta in engine.step() for token in delta.tokens]
        first = first or (1000 * (time.perf_counter() - began) if said else 0.0)
    return first, said


def empty_page_cache(engine: Engine) -> None:
    """Of the tier's file."""
    file = engine.kv.tables._arrivals.shelf._live._file  # type: ignore[union-attr, attr-defined]
    os.fdatasync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


Back = dict[bool, list[float]]
"""Milliseconds to the first token from the tier, without and with an empty page cache."""


def measure(engine: Engine, given: Any, ways: tuple[bool, ...]) -> tuple[list[float], Back, float]:
    """Milliseconds to the first token, computed and from the tier, and MB that come from there in a turn."""
    draw, vocab = random.Random(0), range(engine.architecture.vocab)
    prompts = [tuple(draw.choices(vocab, k=given.prompt)) for _ in range(2)]
    ask(engine, tuple(draw.choices(vocab, k=64)))
    computed, answers = zip(*(ask(engine, prompt) for prompt in prompts), strict=True)
    before, back = engine.stats().counters, {cold: list[float]() for cold in ways}
    for _ in range(given.repetitions):
        for cold in ways:
            for prompt, answer in zip(prompts, answers, strict=True):
                if cold:
                    empty_page_cache(engine)
                seconds, said = ask(engine, prompt)
                assert said == answer, "the tokens differ"
                back[cold].append(seconds)
    after, turns = engine.stats().counters, 2 * given.repetitions * len(ways)
    ran = after.computed_tokens - before.computed_tokens
    assert ran <= turns * (GENERATED + engine.kv.tables.sizes.granule), "it was computed again"
    pages = (after.promoted_pages - before.promoted_pages) / turns
    return list(computed), back, pages * engine.kv.tables.sizes.page_bytes / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", default="/var/tmp")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    disk = f"disk:size=2GiB,folder={given.folder}"
    rows = []
    for codec in CODECS:
        config = EngineConfig(stack={"weights": given.weights, "kv-codec": codec})
        first = start(config, given.shape, [(1, given.prompt, GENERATED)])
        tables = first.kv.tables
        pages = pages_for(tables.groups, tables.sizes, first.context, first.policy.longest_span)
        for name, tier, ways in (("host", "host", (False,)), ("disk", disk, (False, True))):
            stack = {**first.config.stack, "kv-tier": tier}
            size = (pages + 8) * tables.sizes.page_bytes
            engine = Engine(
                dataclasses.replace(first.config, stack=stack, kv_bytes=size), decoder=first.decoder
            )
            computed, returns, moved = measure(engine, given, ways)
            for cold, back in returns.items():
                least, most = (min(computed) / max(back), max(computed) / min(back))
                ratio = statistics.median(computed) / statistics.median(back)
                rows.append(
                    f"| {codec} | {name}{', cold' * cold} | {moved:.0f} | {Spread.of(computed):.0f} | "
                    f"{Spread.of(back):.0f} | **{ratio:.0f}x** ({least:.0f}-{most:.0f}) |"
                )
            engine.close()
        first.close()
    show(report(given, rows), given.out)


def report(given: Any, rows: list[str]) -> str:
    return "\n".join(
        [
            "# A prompt that comes back from a tier",
            f"{platform.machine()}, level {kernels.isa()}, {kernels.threads()} threads, {datetime.date.today()}.  \n"
            f"`python benchmarks/cases/kv_tier.py --shape {given.shape} --weights {given.weights} "
            f"--prompt {given.prompt}`",
            "",
            f"Milliseconds to the first token of {given.prompt} tokens, medians of 2 first times and of "
            f"{2 * given.repetitions} returns, with smallest and largest. Tokens were identical.",
            "",
            "| keys and values | tier | MB back | computed | from the tier | sooner |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "Cold is a file that is not in the system's page cache; where the disk is a virtual one, its host may "
            "still have it.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
