"""How long do decoding requests stall when a long prompt arrives? `orca` against `sarathi`, interleaved in one run.

Four requests decode; a prompt of about 1,900 tokens arrives. For each policy: the longest gap between two tokens of a
decoding request as a multiple of the median gap before the arrival, and the newcomer's time to first token.

    python benchmarks/cases/sarathi_stall.py [--model tiny] [--repetitions 7] [--out FILE]

Claim   https://arxiv.org/abs/2403.02310: chunked prefill bounds the stall; the newcomer's first token comes later.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from result import show

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.meter import Spread
from headrace.params import SamplingParams
from headrace.types import Request

DECODING, PROMPT, NEWCOMER = 4, 64, 1900
WARM_STEPS, AFTER = 40, 20
POLICIES = ("orca", "sarathi:tokens=32", "sarathi:tokens=64", "sarathi:tokens=128")


@dataclass(frozen=True)
class Reading:
    """One run of the scenario. Seconds."""

    median_gap: float
    longest_gap: float
    first_token: float

    @property
    def stall(self) -> float:
        """The longest gap as a multiple of the median."""
        return self.longest_gap / self.median_gap


def read_once(engine: Engine, seed: int) -> Reading:
    """Runs the scenario. The engine is idle before and after."""
    draw = random.Random(seed)
    last: dict[str, float] = {}
    gaps: dict[str, list[float]] = {"before": [], "during": []}
    for i in range(DECODING):
        engine.add(_request(f"decode{i}", draw, PROMPT, WARM_STEPS + NEWCOMER))
    for _ in range(WARM_STEPS):
        _step(engine, last, gaps["before"])
    arrived = time.perf_counter()
    engine.add(_request("newcomer", draw, NEWCOMER, AFTER))
    while "newcomer" not in last:
        _step(engine, last, gaps["during"])
    first_token = last["newcomer"] - arrived
    engine.close()
    settled = gaps["before"][DECODING * 5 :]
    return Reading(statistics.median(settled), max(gaps["during"]), first_token)


def _request(name: str, draw: random.Random, tokens: int, generate: int) -> Request:
    prompt = tuple(draw.randrange(10, 4000) for _ in range(tokens))
    params = SamplingParams(temperature=0, max_tokens=generate, ignore_eos=True)
    return Request(id=name, prompt=prompt, params=params, arrival=time.perf_counter())


def _step(engine: Engine, last: dict[str, float], gaps: list[float]) -> None:
    deltas = engine.step()
    now = time.perf_counter()
    for delta in deltas:
        if delta.tokens:
            if delta.request in last:
                gaps.append(now - last[delta.request])
            last[delta.request] = now


def table(readings: dict[str, list[Reading]]) -> str:
    """Markdown: medians with (lowest - highest) over the repetitions."""
    rows = ["| policy | median gap, ms | longest gap, ms | longest / median | newcomer's first token, s |"]
    rows.append("|---|---|---|---|---|")
    for policy, found in readings.items():
        cells = [
            _cell([1000 * r.median_gap for r in found]),
            _cell([1000 * r.longest_gap for r in found]),
            _cell([r.stall for r in found], "x"),
            _cell([r.first_token for r in found], digits=2),
        ]
        rows.append(f"| `{policy}` | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cell(values: list[float], unit: str = "", digits: int = 1) -> str:
    spread = Spread.of(values)
    return f"{spread.median:.{digits}f}{unit} ({spread.low:.{digits}f}-{spread.high:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    engines = {
        policy: Engine(EngineConfig(model=arguments.model, stack={"policy": policy}, prefix_cache=False))
        for policy in POLICIES
    }
    readings: dict[str, list[Reading]] = {policy: [] for policy in POLICIES}
    for repetition in range(-1, arguments.repetitions):  # the first round warms up
        for policy, engine in engines.items():
            reading = read_once(engine, seed=repetition)
            if repetition >= 0:
                readings[policy].append(reading)
    text = "\n".join(
        [
            f"# Stall of {DECODING} decoding requests when a prompt of {NEWCOMER} tokens arrives",
            "",
            f"Model `{arguments.model}`, {platform.machine()} with {torch.get_num_threads()} threads, "
            f"{datetime.date.today()}, {arguments.repetitions} interleaved repetitions, median (lowest-highest).",
            f"`python benchmarks/cases/sarathi_stall.py --model {arguments.model} "
            f"--repetitions {arguments.repetitions}`",
            "",
            table(readings),
            "",
        ]
    )
    show(text, arguments.out)


if __name__ == "__main__":
    main()
