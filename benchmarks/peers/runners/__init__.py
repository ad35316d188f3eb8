"""What the runners share: one runs inside its peer's environment, times the peer, and prints one line of JSON.

Standard library only: headrace is not installed there, and neither is anything that the peer does not bring itself.
Every engine does the same: prompts of random tokens, greedy, end tokens ignored, every prompt new, so that no prefix is
reused. Prefill is one prompt up to its first token; decoding is timed from the moment that every request of the batch
has its first token.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

WARM_PROMPT, WARM_TOKENS = 32, 4
Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Task:
    """What to run."""

    model: Path
    vocab: int
    batches: tuple[int, ...]
    prompt_len: int
    gen_len: int
    threads: int
    seed: int
    options: dict[str, str]
    """What tells one variant of an engine from another."""

    @classmethod
    def parse(cls) -> Task:
        """From the command line that benchmarks/peers/process.py writes."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--model", type=Path, required=True)
        for name in ("vocab", "prompt-len", "gen-len", "threads", "seed"):
            parser.add_argument(f"--{name}", type=int, required=True)
        parser.add_argument("--batch", required=True)
        parser.add_argument("--option", action="append", default=[])
        given = parser.parse_args()
        return cls(
            given.model,
            given.vocab,
            tuple(int(part) for part in given.batch.split(",")),
            given.prompt_len,
            given.gen_len,
            given.threads,
            given.seed,
            dict(option.split("=", 1) for option in given.option),
        )

    @property
    def most_tokens(self) -> int:
        """Of prompts and outputs together, in the largest batch."""
        return max(self.batches) * max(self.context, WARM_PROMPT + WARM_TOKENS)

    @property
    def context(self) -> int:
        """Of one request."""
        return self.prompt_len + self.gen_len


@dataclass(frozen=True)
class Timing:
    """One batch from start to end."""

    prefill_s: float
    """Until every request has its first token."""
    decode_s: float
    decode_tokens: int
    """Generated in decode_s, over the whole batch."""


@dataclass
class Reading:
    """The line of JSON."""

    prefill_tok_s: float
    decode_tok_s: dict[int, float]
    peak_rss_bytes: int
    version: str
    notes: list[str]
    prefill_gop_s: float | None = None
    """Products of a prompt, 10^9 operations per second, where the engine says how many there are."""
    read_gb_s: float | None = None
    """Weights, keys and values read at batch 1, where the engine says how much that is."""


def measure(task: Task, run: Callable[[Prompts, int], Timing], version: str, notes: list[str]) -> None:
    """Times every batch size with `run(prompts, tokens to generate)`, and prints the reading.

    A short run of each batch size goes before: engines compile and allocate for a size when they first meet it.
    """
    rng = random.Random(task.seed)

    def prompts(batch: int, length: int) -> list[list[int]]:
        return [rng.choices(range(task.vocab), k=length) for _ in range(batch)]

    run(prompts(1, task.prompt_len), WARM_TOKENS)
    prefill, decode = 0.0, {}
    for batch in sorted({1, *task.batches}):
        run(prompts(batch, WARM_PROMPT), WARM_TOKENS)
        timing = run(prompts(batch, task.prompt_len), task.gen_len)
        if batch == 1:
            prefill = task.prompt_len / timing.prefill_s
        if batch in task.batches and timing.decode_tokens:
            decode[batch] = timing.decode_tokens / timing.decode_s
    sys.stdout.write(json.dumps(asdict(Reading(prefill, decode, peak_rss_bytes(), version, notes))) + "\n")
    sys.stdout.flush()


def time_steps(step: Callable[[], Sequence[int]], begin: float, gen_len: int) -> Timing:
    """Drives an engine that has its own scheduler. `step()` runs once: tokens so far of each request.

    Only the steps in which the whole batch decodes count: a scheduler may start and finish requests one by one.
    """
    prefill = end = 0.0
    before = after = 0
    while True:
        counts = step()
        now = time.perf_counter() - begin
        if min(counts) and not prefill:
            prefill, before = now, sum(counts)
        if not end and max(counts) >= gen_len:
            end, after = now, sum(counts)
        if min(counts) >= gen_len:
            return Timing(prefill, max(end - prefill, 0.0), after - before if end > prefill else 0)


def peak_rss_bytes() -> int:
    """Most memory that this process has held. Not `ru_maxrss`: that one starts at what the parent held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
