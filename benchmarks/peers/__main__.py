"""Runs headrace and every installed peer on one shape, in turns, and writes the table to benchmarks/results/.

    python -m benchmarks.peers [--shape llama-3.2-1b] [--weights int4,bf16] [--batch 1,4,16] [--repeat 5] [--envs DIR]

Repetition 1 of every engine, then repetition 2 of every engine, ...; each turn is a process of its own, in the engine's
own virtual environment, and never two at once. A variant of an engine that is more than a tenth behind another one in
every speed takes one turn only. An engine that is not set up or that fails has the reason in its row;
`python -m benchmarks.peers.setup` installs them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from pathlib import Path

from benchmarks.peers import report
from benchmarks.peers.process import ROOT, Case, Failed, Turns, missing, read_limits
from benchmarks.peers.roster import DEFAULT_ENVS, Variant, groups
from headrace.commands import shapes


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line. A bad one ends the process with a line on what is wrong."""
    known = groups()
    peers = sorted({variant.peer for variants in known.values() for variant in variants})
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-3.2-1b", choices=shapes.SHAPES)
    parser.add_argument("--weights", default="int4,bf16", help=f"groups to compare: {', '.join(known)}")
    parser.add_argument("--batch", default="1,4,16", help="requests at once")
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--gen-len", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engines", default=",".join(peers), help="some of the default")
    parser.add_argument("--envs", type=Path, default=DEFAULT_ENVS, help="environments and exported models")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that a turn may take")
    parser.add_argument("--machine", help="its name in the file name; by default made from the processor's")
    parser.add_argument("--out", type=Path, help="Markdown file; the JSON goes beside it")
    given = parser.parse_args(argv)
    for flag, names, allowed in (("weights", given.weights, known), ("engines", given.engines, peers)):
        for name in names.split(","):
            if name not in allowed:
                parser.error(f"--{flag}: {name!r} is none of {', '.join(allowed)}")
    if not all(part.isdigit() and int(part) for part in given.batch.split(",")):
        parser.error(f"--batch={given.batch!r} is not a list such as 1,4,16")
    if given.gen_len < 2 or given.repeat < 1 or given.prompt_len < 1:
        parser.error("--gen-len must be 2 or more, --repeat and --prompt-len 1 or more")
    return given


def compare(
    case: Case, chosen: dict[str, list[Variant]], given: argparse.Namespace, header: list[str]
) -> Path:
    """All repetitions. The files are written after each, so that a run cut short leaves what it has."""
    results = report.Results(chosen)
    variants = [variant for group in chosen.values() for variant in group]
    results.failures.update({v: why for v in variants if (why := missing(v, case))})
    turns = Turns(case)
    path = given.out or ROOT / "benchmarks" / "results" / f"{_stem(given)}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    for repetition in range(given.repeat):
        for name, limit in read_limits(case).items():
            results.limits.setdefault(name, []).append(limit)
        for variant in variants:
            if variant not in results.failures and variant not in results.beaten:
                take_turn(variant, turns, repetition, given.repeat, results)
        if repetition == 0:
            results.beaten = {
                v for group in chosen.values() for v in report.beaten(group, results, case.batches)
            }
        done = (
            f"{repetition + 1} of {given.repeat} repetitions done." if repetition + 1 < given.repeat else ""
        )
        lines = [*header, *([done] if done else [])]
        path.write_text(report.document(results, case, lines))
        path.with_suffix(".json").write_text(json.dumps(report.data(results, case, lines), indent=1) + "\n")
    return path


def take_turn(variant: Variant, turns: Turns, repetition: int, repeat: int, results: report.Results) -> None:
    """One process. A variant that fails is not tried again."""
    begin = time.monotonic()
    try:
        reading = turns.read(variant, repetition)
    except Failed as failure:
        results.failures[variant] = str(failure)
        outcome = f"FAILED: {failure}"
    else:
        results.readings.setdefault(variant, []).append(reading)
        decode = ", ".join(f"{rate:.1f} at {batch}" for batch, rate in reading.decode_tok_s.items())
        outcome = f"prefill {reading.prefill_tok_s:.0f}, decode {decode} tok/s"
    say(f"{repetition + 1}/{repeat} {variant.name}: {outcome} ({time.monotonic() - begin:.0f} s)")


def say(line: str) -> None:
    print(f"peers: {line}", file=sys.stderr, flush=True)


def _stem(given: argparse.Namespace) -> str:
    name, _ = report.processor()
    machine = given.machine or report.slug(name, len(os.sched_getaffinity(0)))
    return f"peers_{given.shape}_{machine}_{datetime.date.today()}"


def _header(given: argparse.Namespace) -> list[str]:
    """Machine, conditions and command. Not where the environments are: that is nobody's business."""
    name, features = report.processor()
    command = " ".join(
        f"--{flag.replace('_', '-')} {getattr(given, flag)}"
        for flag in ("shape", "weights", "batch", "prompt_len", "gen_len", "repeat", "threads", "engines")
    )
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        f"{name}, {len(os.sched_getaffinity(0))} cores ({' '.join(features)}), {datetime.date.today()}; load before "
        f"the run: {load}.",
        f"Random weights; {given.threads} threads; prompts of {given.prompt_len} random tokens, {given.gen_len} new "
        f"ones each; no prefix is reused. Prefill: one prompt, up to its first token. Decode: tokens per second of the "
        f"whole batch, after the prompts. {given.repeat} interleaved repetitions: median (lowest-highest), and the "
        "ratio to the best peer of the column (bold). Where an engine has several variants, the better one of each "
        "column is shown and named.",
        f"`python -m benchmarks.peers {command}`",
    ]


def main(argv: list[str] | None = None) -> int:
    given = parse(argv)
    case = Case(
        shape=given.shape,
        vocab=shapes.SHAPES[given.shape]["vocab_size"],
        batches=tuple(sorted({int(part) for part in given.batch.split(",")})),
        prompt_len=given.prompt_len,
        gen_len=given.gen_len,
        threads=given.threads,
        envs=given.envs.expanduser().absolute(),
        timeout_s=given.timeout,
    )
    engines, known = given.engines.split(","), groups()
    chosen = {
        weights: [variant for variant in known[weights] if variant.peer in engines]
        for weights in given.weights.split(",")
    }
    path = compare(case, chosen, given, _header(given))
    print(path.read_text())
    say(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
