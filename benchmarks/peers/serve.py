"""Servers under the same load, in turns, in one run: requests per second, and what clients wait for.

    python -m benchmarks.peers.serve [--requests 64] [--clients 16] [--repeat 3] [--envs DIR]

First a shorter trial of every variant: the one of each engine with the most requests per second goes on. Then
repetition 1 of every engine, repetition 2, ...; each turn starts a server, warms it up and loads it. Every client asks
again as soon as it has its answer. Set up with
`python -m benchmarks.peers.setup llama_cpp openvino --weights int4 --servers`.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers import report
from benchmarks.peers.process import ROOT, Case, Failed, read_limits
from benchmarks.peers.roster import DEFAULT_ENVS, HEADRACE
from benchmarks.peers.servers import ITL_S, SERVERS, TTFT_S, Load, Server, take_turn
from headrace.commands import shapes
from headrace.meter import Spread

RATE, STALL = "requests_per_s", "itl_p99_s"
COLUMNS: tuple[tuple[str, str, float, int], ...] = (
    ("requests/s", RATE, 1, 3),
    ("between tokens p50, ms", "itl_p50_s", 1e-3, 0),
    ("p95", "itl_p95_s", 1e-3, 0),
    ("p99", STALL, 1e-3, 0),
    ("max", "itl_max_s", 1e-3, 0),
    ("first token p50, s", "ttft_p50_s", 1, 1),
    ("p99", "ttft_p99_s", 1, 1),
    ("tokens/s out", "output_tok_s", 1, 1),
    ("goodput/s", "goodput_per_s", 1, 3),
    ("peak RSS, GiB", "peak_rss_bytes", 1 << 30, 2),
)
"""Title, key of the row, unit, digits."""


@dataclass
class Results:
    """Everything measured so far."""

    servers: Sequence[Server]
    trials: dict[Server, list[dict[str, Any]]] = field(default_factory=dict)
    """One turn of every variant, with fewer requests."""
    rows: dict[Server, list[dict[str, Any]]] = field(default_factory=dict)
    """Turns of those that went on."""
    failures: dict[Server, str] = field(default_factory=dict)
    limits: dict[str, list[float]] = field(default_factory=dict)

    def chosen(self) -> list[Server]:
        """The best of each engine in the trials."""
        engines: dict[str, list[Server]] = {}
        for server in self.servers:
            engines.setdefault(server.engine, []).append(server)
        return [found for servers in engines.values() if (found := best(self.trials, servers))]


Rows = Mapping[Server, Sequence[Mapping[str, Any]]]


def spread(rows: Rows, server: Server, key: str) -> Spread:
    return Spread.of([row.get(key, 0.0) for row in rows[server]])


def best(rows: Rows, servers: Sequence[Server]) -> Server | None:
    """The one with the most requests per second."""
    ran = [server for server in servers if rows.get(server)]
    return max(ran, key=lambda server: spread(rows, server, RATE).median, default=None)


def table(rows: Rows, servers: Sequence[Server], failures: Mapping[Server, str]) -> str:
    """Markdown: medians (lowest-highest), or why there are none."""
    lines = [
        "| server | " + " | ".join(title for title, *_ in COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for server in servers:
        if rows.get(server):
            cells = [_cell(rows[server], key, unit, digits) for _, key, unit, digits in COLUMNS]
        else:
            cells = [f"**no result**: {failures.get(server, 'has not run')}"]
            cells += [""] * (len(COLUMNS) - 1)
        lines.append(f"| {server.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(rows: Sequence[Mapping[str, Any]], key: str, unit: float, digits: int) -> str:
    found = Spread.of([row.get(key, 0.0) / unit for row in rows])
    return f"{found:.{digits}f}" if len(rows) > 1 else f"{found.median:.{digits}f}"


def verdict(results: Results) -> str:
    """headrace against the best peer: that with the most requests per second."""
    own = best(results.rows, [server for server in results.servers if server.peer == HEADRACE])
    peer = best(results.rows, [server for server in results.servers if server.peer != HEADRACE])
    if own is None or peer is None:
        return "There is nobody to compare with."
    rates = [spread(results.rows, server, RATE).median for server in (own, peer)]
    stalls = [spread(results.rows, server, STALL).median for server in (own, peer)]
    return (
        f"**{own.name} against the best peer, {peer.name}: {rates[0] / rates[1]:.2f}x the requests per second, at "
        f"{stalls[0] / stalls[1]:.2f}x its p99 between tokens.**"
    )


def document(results: Results, header: Sequence[str]) -> str:
    """The whole Markdown file."""
    limits = "\n".join(f"- {name}: {Spread.of(values):.1f}" for name, values in results.limits.items())
    notes = "\n".join(f"- {server.name}: `{' '.join(server.options)}`" for server in results.servers)
    failed = "\n".join(f"- {server.name}: {why}" for server, why in results.failures.items())
    parts = ["# Servers under load", "\n".join(header), verdict(results)]
    parts += [table(results.rows, results.chosen(), results.failures)]
    parts += ["The trials:", table(results.trials, results.servers, results.failures), "Options:\n" + notes]
    parts += ["Failed:\n" + failed] if failed else []
    parts += ["Limits of the machine, measured natively before each repetition:\n" + limits] if limits else []
    return "\n\n".join(parts) + "\n"


def compare(of: Load, results: Results, header: list[str], given: argparse.Namespace, path: Path) -> None:
    """Trials and repetitions. The files are written after each turn, so that a run cut short leaves what it has."""
    case = Case(of.shape, of.vocab, (1,), 0, 0, of.threads, of.envs, of.timeout_s)
    results.failures.update({server: why for server in results.servers if (why := server.missing(of))})
    trial = dataclasses.replace(of, requests=given.trial)
    for server in results.servers:
        _turn(server, trial, 0, results.trials, results, "trial")
        _write(results, header, of, path)
    for repetition in range(given.repeat):
        for name, limit in read_limits(case).items():
            results.limits.setdefault(name, []).append(limit)
        for server in results.chosen():
            _turn(server, of, 1 + repetition, results.rows, results, f"{repetition + 1}/{given.repeat}")
            _write(results, header, of, path)


def _turn(
    server: Server,
    of: Load,
    seed: int,
    rows: dict[Server, list[dict[str, Any]]],
    results: Results,
    which: str,
) -> None:
    """One turn, into `rows`. A server that fails is not tried again."""
    if server in results.failures:
        return
    begin = time.monotonic()
    try:
        row, _ = take_turn(server, of, seed)
    except Failed as failure:
        results.failures[server] = str(failure)
        said = f"FAILED: {failure}"
    else:
        rows.setdefault(server, []).append(row)
        said = f"{row[RATE]:.3f} requests/s, p99 {row[STALL] * 1000:.0f} ms between tokens"
    say(f"{which} {server.name}: {said} ({time.monotonic() - begin:.0f} s)")


def _write(results: Results, header: list[str], of: Load, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document(results, header))
    data = {
        "shape": of.shape,
        "requests": of.requests,
        "clients": of.clients,
        "system_tokens": of.system,
        "own_tokens": of.own,
        "gen_len": of.gen_len,
        "threads": of.threads,
        "header": header,
        "limits": results.limits,
        "servers": [
            {
                "engine": server.engine,
                "variant": server.label,
                "options": server.options,
                "trial": results.trials.get(server, []),
                "rows": results.rows.get(server, []),
                "failure": results.failures.get(server),
            }
            for server in results.servers
        ],
    }
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")


def say(line: str) -> None:
    print(f"peers: {line}", file=sys.stderr, flush=True)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.serve", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--shape", default="llama-3.2-1b", choices=shapes.SHAPES)
    parser.add_argument(
        "--requests", type=int, default=64, help="per turn, after as many as there are clients"
    )
    parser.add_argument("--trial", type=int, default=32, help="requests of a trial")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--system", type=int, default=300, help="tokens in front of every prompt")
    parser.add_argument(
        "--own", type=int, nargs=2, default=(100, 800), help="tokens after them, fewest and most"
    )
    parser.add_argument("--gen-len", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[], help="servers whose names contain one of these")
    parser.add_argument(
        "--headrace", nargs=argparse.REMAINDER, default=[], help="more flags of headrace serve; last"
    )
    parser.add_argument("--envs", type=Path, default=DEFAULT_ENVS, help="environments and exported models")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that a turn may take")
    parser.add_argument("--machine", help="its name in the file name; by default made from the processor's")
    parser.add_argument("--out", type=Path, help="Markdown file; the JSON goes beside it")
    return parser.parse_args(argv)


def _header(given: argparse.Namespace, name: str, features: Sequence[str]) -> list[str]:
    """Machine, conditions and command. Not where the environments are: that is nobody's business."""
    flags = ("shape", "requests", "trial", "clients", "system", "gen_len", "repeat", "threads")
    command = " ".join(f"--{flag.replace('_', '-')} {getattr(given, flag)}" for flag in flags)
    command += f" --own {given.own[0]} {given.own[1]}" + (
        f" --only {shlex.join(given.only)}" if given.only else ""
    )
    command += f" --headrace {shlex.join(given.headrace)}" if given.headrace else ""
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        f"{name}, {len(os.sched_getaffinity(0))} cores ({' '.join(features)}), {datetime.date.today()}; load before "
        f"the run: {load}.",
        f"{given.shape} with random weights in 4 bits; {given.threads} threads per server; {given.clients} clients, "
        "each asks again when it has its answer; prompts of a system prompt that all share "
        f"({given.system} tokens) and {given.own[0]}-{given.own[1]} tokens of their own; exactly {given.gen_len} "
        f"tokens out, streamed; {given.requests} requests per turn. {given.repeat} interleaved repetitions: median "
        f"(lowest-highest). Goodput: first token within {TTFT_S:g} s, {ITL_S:g} s between tokens on average.",
        f"`python -m benchmarks.peers.serve {command}`",
    ]


def main(argv: list[str] | None = None) -> int:
    given = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # no server is left behind
    of = Load(
        given.shape,
        shapes.SHAPES[given.shape]["vocab_size"],
        given.requests,
        given.clients,
        given.system,
        tuple(given.own),
        given.gen_len,
        given.threads,
        given.envs.expanduser().absolute(),
        given.timeout,
    )
    only = given.only
    servers = [server for server in SERVERS if not only or any(part in server.name for part in only)]
    servers = [server.plus(given.headrace) if server.peer == HEADRACE else server for server in servers]
    name, features = report.processor()
    machine = given.machine or report.slug(name, len(os.sched_getaffinity(0)))
    stem = f"serve_{given.shape}_{machine}_{datetime.date.today()}.md"
    path = given.out or ROOT / "benchmarks" / "results" / stem
    compare(of, Results(servers), _header(given, name, features), given, path)
    print(path.read_text())
    say(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
