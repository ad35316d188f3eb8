"""How much sooner does a long prompt's first token come, when most of it is read by the first layers only?

One request at a time, prompts of random tokens, in turns. Then the model in the box looks for a passkey.

    python benchmarks/cases/gemfilter.py [--shape llama-3.2-1b] [--weights int4] [--prompt 2048]
        [--specs gemfilter:keep=512,layer=5] [--out FILE]

Claim   https://arxiv.org/abs/2409.17422 (GemFilter): 2.4 times faster than attention over everything, at 128k tokens
Target  the first token of a prompt of 2,048 comes at least 1.5 times as soon
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import platform
import random
import sys
import time
from pathlib import Path
from typing import Any

from result import show

from headrace import LLM, kernels
from headrace.box.evaluate import accuracy
from headrace.box.tasks import TASKS
from headrace.commands.bench import start
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.meter import Spread
from headrace.stats import Counters
from headrace.types import Request, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--specs", nargs="+", default=["gemfilter:keep=512,layer=5"])
    parser.add_argument("--passkey", nargs="*", default=[f"gemfilter:keep=256,layer={i}" for i in (2, 3, 4)])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--count", type=int, default=40, help="of passkeys")
    parser.add_argument("--part", choices=("speed", "passkey", "both"), default="both")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    text = "" if given.part == "passkey" else speed(given)
    text += "" if given.part == "speed" else passkeys(given)
    show(text, given.out)


def speed(given: Any) -> str:
    base = EngineConfig(stack={"weights": given.weights}, prefix_cache=False, context=given.prompt + 8)
    plain = start(base, given.shape, [(1, given.prompt, 2)])
    engines = {"whole": plain}
    for spec in given.specs:
        config = dataclasses.replace(plain.config, stack={**base.stack, "shrinker": spec})
        engines[spec] = Engine(config, decoder=plain.decoder)
    for engine in engines.values():
        first_token(engine, given.prompt // 4, 0)
        engine.counters = Counters()
    found: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(given.repetitions):
        for name, engine in engines.items():
            found[name].append(first_token(engine, given.prompt, 1 + turn))
    rows = ["| prompt | seconds to the first token | against whole | tokens left out |", "|---|---|---|---|"]
    for name, times in found.items():
        ratio = Spread.of([a / b for a, b in zip(found["whole"], times, strict=True)])
        counters = engines[name].counters
        rows.append(
            f"| `{name}` | {Spread.of(times):.1f} | **{ratio:.2f}x** | "
            f"{counters.dropped_tokens / counters.prompt_tokens:.0%} |"
        )
    where = (
        f"{platform.machine()}, level {kernels.isa()}, {kernels.threads()} threads, {datetime.date.today()}."
    )
    return (
        f"# Prompts that the first layers filter (gemfilter)\n\n{where}  \n"
        f"`python {' '.join(sys.argv[:-2] if given.out else sys.argv)}`\n\nRandom weights of {given.shape}, "
        f"`{given.weights}`, prompts of {given.prompt} tokens, one at a time. {given.repetitions} repetitions in "
        "turns: median (lowest-highest); ratios within a repetition.\n\n" + "\n".join(rows) + "\n"
    )


def first_token(engine: Engine, length: int, seed: int) -> float:
    """Seconds until it is there."""
    prompt = tuple(random.Random(seed).choices(range(engine.architecture.vocab), k=length))
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=1)
    begin = time.perf_counter()
    engine.add(Request(id="one", prompt=prompt, params=params))
    while engine.busy:
        engine.step()
    return time.perf_counter() - begin


def passkeys(given: Any) -> str:
    """How often the model in the box finds a number in a long text."""
    rows = ["| prompt | passkeys found |", "|---|---|"]
    for spec in ("", *given.passkey):
        with LLM("tiny", stack={"shrinker": spec} if spec else {}) as llm:
            [score] = accuracy(llm, TASKS["passkey"], given.count, 0)
        rows.append(
            f"| `{spec or 'whole'}` | {score.value:.1%} ({score.low:.1%}-{score.high:.1%}), {score.size} |"
        )
    return (
        f"\nThe model in the box, {given.count} passkeys; in brackets the 95 % interval.\n\n"
        + "\n".join(rows)
        + "\n"
    )


if __name__ == "__main__":
    main()
