"""One turn of one engine: a process in its own environment, and what it said or why it failed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.roster import HEADRACE, Variant, models_of, python_of, show_tiles
from benchmarks.peers.runners import Reading

ROOT = Path(__file__).resolve().parents[2]
_USAGE = 2  # exit code of a headrace that refuses a flag


@dataclass(frozen=True)
class Case:
    """What every engine runs."""

    shape: str
    vocab: int
    batches: tuple[int, ...]
    prompt_len: int
    gen_len: int
    threads: int
    envs: Path
    timeout_s: float


class Failed(Exception):
    """A process that did not give its result. The text is the reason."""

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.code = code


class Turns:
    """Takes turns, and remembers which variants run only when this machine's AMX is shown to them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.shown: set[Variant] = set()

    def read(self, variant: Variant, repetition: int) -> Reading:
        """One turn. Raises Failed."""
        if variant not in self.shown:
            try:
                return _read(variant, self.case, repetition, dict(variant.environment))
            except Failed as failure:
                library = show_tiles(self.case.envs)
                if failure.code != -signal.SIGILL or variant.peer == HEADRACE or not library.exists():
                    raise
        shown = {"LD_PRELOAD": str(show_tiles(self.case.envs))}
        reading = _read(variant, self.case, repetition, {**dict(variant.environment), **shown})
        self.shown.add(variant)
        reading.notes.append(
            "dies of an illegal instruction here unless show_tiles.c shows it the tiles of AMX"
        )
        return reading


def _read(variant: Variant, case: Case, repetition: int, environment: Mapping[str, str]) -> Reading:
    run = _headrace if variant.peer == HEADRACE else _peer
    return run(variant, case, repetition, environment)


def read_limits(case: Case) -> dict[str, float]:
    """What the machine does at most just now, as benchmarks.peers.limits prints it. Empty if that fails."""
    command = (sys.executable, "-m", "benchmarks.peers.limits", "--threads", str(case.threads))
    try:
        found: dict[str, float] = call(command, {}, case)
    except Failed as failure:
        print(f"peers: limits: {failure}", file=sys.stderr)
        return {}
    return found


def missing(variant: Variant, case: Case) -> str | None:
    """Why a variant cannot run at all."""
    if variant.peer == HEADRACE:
        return None
    python = python_of(case.envs, variant.peer)
    model = models_of(case.envs, case.shape) / variant.model
    if python.exists() and model.exists():
        return None
    what = "its model is missing" if python.exists() else "not set up"
    return f"{what}: `python -m benchmarks.peers.setup {variant.peer} --shape {case.shape}`"


def _peer(variant: Variant, case: Case, repetition: int, environment: Mapping[str, str]) -> Reading:
    model = models_of(case.envs, case.shape) / variant.model
    command = [
        str(python_of(case.envs, variant.peer)),
        "-m",
        f"benchmarks.peers.runners.{variant.runner}",
        "--model",
        str(model),
        "--vocab",
        str(case.vocab),
        *_sizes(case, repetition),
        *(part for option in variant.options for part in ("--option", option)),
    ]
    found = call(command, environment, case)
    decode = {int(batch): rate for batch, rate in found.pop("decode_tok_s").items()}
    reading = Reading(decode_tok_s=decode, **found)
    reading.notes.insert(0, f"model file {model_bytes(model) / 1e9:.2f} GB")
    return reading


def _headrace(variant: Variant, case: Case, repetition: int, environment: Mapping[str, str]) -> Reading:
    """`headrace bench latency`, which warms up by itself; with its defaults if it refuses the flags."""
    command = [
        *(sys.executable, "-m", "headrace", "bench", "latency", "--json", "--quiet"),
        *("--shape", case.shape, "--repeat", "1", *_sizes(case, repetition, with_one=True)),
    ]
    notes = []
    try:
        rows = call([*command, *variant.options], environment, case)
    except Failed as failure:
        if failure.code != _USAGE or not variant.options:
            raise
        notes.append(f"**its default stack**, because it refuses `{' '.join(variant.options)}`: {failure}")
        rows = call(command, environment, case)
    return translate(rows, case, notes)


def translate(rows: Sequence[Mapping[str, Any]], case: Case, notes: list[str]) -> Reading:
    """The rows of `headrace bench latency --json` as a reading."""
    import headrace

    by_batch = {row["batch"]: row for row in rows}
    first = by_batch[1]
    notes.append(f"weights {first['weight_bytes'] / 1e9:.2f} GB")
    notes.append(f"{first['dtype']}, {first['isa']}, `{first['stack']}`")
    decode = {batch: by_batch[batch]["decode_tok_s"] for batch in case.batches}
    peak = max(row["peak_rss_bytes"] for row in rows)
    reading = Reading(first["prefill_tok_s"], decode, peak, headrace.__version__, notes)
    reading.prefill_gop_s, reading.read_gb_s = first.get("prefill_gop_s"), first.get("read_gb_s")
    return reading


def _sizes(case: Case, repetition: int, with_one: bool = False) -> list[str]:
    batches = sorted({1, *case.batches} if with_one else case.batches)
    sizes = {
        "batch": ",".join(map(str, batches)),
        "prompt-len": case.prompt_len,
        "gen-len": case.gen_len,
        "threads": case.threads,
        "seed": repetition,
    }
    return [part for name, value in sizes.items() for part in (f"--{name}", str(value))]


def model_bytes(model: Path) -> int:
    """Size of the weights on disk."""
    if model.is_file():
        return model.stat().st_size
    return sum(p.stat().st_size for p in (*model.glob("*.safetensors"), *model.glob("openvino_model.bin")))


def call(command: Sequence[str], environment: Mapping[str, str], case: Case) -> Any:
    """Runs a command to its end, and reads the last line of JSON that it printed. Raises Failed."""
    settings = {"OMP_NUM_THREADS": str(case.threads), **environment}
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=case.timeout_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # with what it started: it leads a session of its own
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise Failed(f"no end after {case.timeout_s:.0f} s") from None
            raise
        errors.seek(0)
        said = errors.read()
    for line in reversed(output.splitlines()):
        if process.returncode == 0 and line.startswith(("{", "[")):
            return json.loads(line)
    raise Failed(reason(process.returncode, said, case.envs), process.returncode)


def reason(code: int, said: str, envs: Path) -> str:
    """The last line on stderr, or the signal, without the paths of this machine."""
    lines = [line.strip() for line in said.splitlines() if line.strip(" │╰╯─╭╮")]
    last = lines[-1] if lines else "it said nothing on stderr"
    for path, name in ((envs, "ENVS"), (ROOT, "."), (Path.home(), "~")):
        last = last.replace(str(path), name)
    last = re.sub(r"\s+", " ", last.strip("│╰╯─╭╮ ")).replace("|", "\\|")
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; last line: {last[:300]}"
    return last[:300] if code else f"no result; last line: {last[:300]}"


def as_json(reading: Reading) -> dict[str, Any]:
    """For the file beside the table."""
    return dataclasses.asdict(reading)
