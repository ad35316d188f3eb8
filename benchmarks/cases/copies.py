"""What do copied guesses gain? An edited copy of a long text, and a text that repeats nothing, with and without them.

Random weights write no text: what comes next is a script, and the model only takes its time. The copy has an edit every
`--every` tokens. Plain decoding, a fixed number of guesses and the automatic one, in turns.

    python benchmarks/cases/copies.py [--shape llama-3.2-1b] [--weights int4] [--tokens 300] [--every 25] [--out FILE]

Claims  copyspec at least 2x plain decoding on edited copies; never slower than plain by more than 3 % where there is
        nothing to copy; https://arxiv.org/abs/2502.08923 reports 2.35x to 3.08x
"""

from __future__ import annotations

import argparse
import datetime
import platform
import random
import time
from pathlib import Path
from typing import Any

from result import show

from headrace import kernels
from headrace.commands.bench import start
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.meter import Spread
from headrace.types import Request, SamplingParams

WAYS = {
    "plain": {},
    "copyspec, 10 tokens": {"drafter": "copyspec", "draft-budget": "fixed:tokens=10"},
    "copyspec, auto": {"drafter": "copyspec"},
}


def scripts(vocab: int, length: int, every: int, seed: int) -> dict[str, tuple[list[int], list[int]]]:
    """Name -> prompt, and what follows it."""
    draw = random.Random(seed)
    text = draw.sample(range(vocab), length)
    edited = [draw.randrange(vocab) if i % every == every - 1 else token for i, token in enumerate(text)]
    return {
        "edited copy": ([*text, 7, 8, 9], edited),
        "nothing to copy": (text, draw.sample(range(vocab), length)),
    }


def follow(engine: Engine, script: list[int]) -> None:
    """Whatever the logits are, the token at a position is the script's."""
    engine.sampler._choose = lambda seq, raw_V, greedy, position, guesses: script[position]  # type: ignore[method-assign]


def read(engine: Engine, prompt: list[int], answer: list[int]) -> tuple[float, float]:
    """Tokens per second of decoding, and tokens per step."""
    follow(engine, [*prompt, *answer])
    params = SamplingParams(temperature=0, max_tokens=len(answer), ignore_eos=True)
    engine.add(Request(id="r", prompt=tuple(prompt), params=params))
    while not engine.step():
        pass
    begin, steps = time.perf_counter(), 0
    while engine.busy:
        engine.step()
        steps += 1
    return (len(answer) - 1) / (time.perf_counter() - begin), (len(answer) - 1) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    common = {"weights": given.weights, "kv-codec": "bf16"}
    first = start(EngineConfig(stack=common), given.shape, [(1, given.tokens + 8, given.tokens)])
    same = {"model": given.shape, "kv_bytes": first.config.kv_bytes, "prefix_cache": False}
    engines = {
        name: Engine(EngineConfig(stack={**common, **stack}, **same), decoder=first.decoder)
        for name, stack in WAYS.items()
    }
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for repetition in range(given.repetitions):
        texts = scripts(first.architecture.vocab, given.tokens, given.every, repetition)
        for text, (prompt, answer) in texts.items():
            for name, engine in engines.items():
                found.setdefault((text, name), []).append(read(engine, prompt, answer))
    show(report(given, found), given.out)


def report(given: Any, found: dict[tuple[str, str], list[tuple[float, float]]]) -> str:
    lines = [
        "# What copied guesses gain",
        f"{platform.machine()}, level {kernels.isa()}, {kernels.threads()} threads, {datetime.date.today()}.  \n"
        f"`python benchmarks/cases/copies.py --shape {given.shape} --weights {given.weights} --tokens {given.tokens} "
        f"--every {given.every} --repetitions {given.repetitions}`",
        f"Random weights, a script instead of their choice. {given.repetitions} repetitions in turns: median "
        "(lowest-highest); ratios within each repetition.",
        "| text | | tokens/s | of plain | tokens per step |\n|---|---|---|---|---|",
    ]
    for (text, name), values in found.items():
        plain = [rate for rate, _ in found[text, "plain"]]
        rates = [rate for rate, _ in values]
        ratio = Spread.of([rate / without for rate, without in zip(rates, plain, strict=True)])
        per_step = Spread.of([steps for _, steps in values])
        lines[-1] += f"\n| {text} | {name} | {Spread.of(rates):.1f} | **{ratio:.2f}x** | {per_step:.2f} |"
    return "\n\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
