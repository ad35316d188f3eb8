"""A model of twice the memory that it may take: decoding steps with a window over its blocks, and with plain paging.

Engines in processes of their own, by turns, one sequence each, the same tokens: `window` and `paging` in control
groups with room for half of the model's packed weights, and for what an engine takes beside them; `memory` with all the
room it wants. `paging` is the same engine with all packed weights in a mapped file: the kernel reads what is missing,
and drops what was used longest ago.

    python benchmarks/cases/weight_tier.py [--shape llama-3.2-1b] [--weights bf16] [--folder /var/tmp] [--turns 5]
        [--out FILE]

Needs the right to make a memory control group (root).

Claim   https://arxiv.org/abs/2312.11514 (LLM in a flash): models of twice the memory, 4 to 5 times as fast as naive
        loading
Target  at least four times as fast as paging, and the same tokens

How fast paging is depends on the kernel's read-ahead, so it runs twice: as the machine is set up, and with what Linux
starts with (128 KiB), set for its file alone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
import mmap
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from result import show

from headrace import kernels
from headrace.commands import shapes
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.forward.decoder import Decoder
from headrace.forward.memory import set_threads
from headrace.meter import Spread
from headrace.types import Request, SamplingParams
from headrace.weight import assemble
from headrace.weight.memory import PAGE, Take, huge
from headrace.weight.names import shapes as tensor_shapes
from headrace.weight.scratch import Scratch
from headrace.weight.store import InMemory
from headrace.weight.synthetic import random_weights

CONTEXT, KV = 512, 40 << 20
SLACK = 16 << 20
"""Bytes of a control group's limit beyond what was measured, and the whole pool of keys and values."""
READ, PIECE = 512 << 20, 64 << 20
"""Bytes that tell the disk's bandwidth, and of them those that are read at a time."""
STEPS = {"memory": 8, "window": 4, "paging": 2, "paging, 128 KiB": 2}
"""Per turn."""
DEFAULT_AHEAD = 128
"""KiB of read-ahead that Linux starts with."""
GROUPS = Path("/sys/fs/cgroup")


# ---- an engine, in a process of its own ----


class Mapped(InMemory):
    """Packed weights in a mapped file. As a tier it places them; as a store it leaves the rest to the kernel."""

    def __init__(self, folder: str, size: int, ahead: int | None) -> None:
        """ahead: KiB of read-ahead, of this file alone; None leaves it to the machine's setting."""
        super().__init__(torch.device("cpu"))
        with contextlib.nullcontext() if ahead is None else set_to(read_ahead(folder), ahead):
            self._file = tempfile.TemporaryFile(dir=folder)  # which takes over the setting when it is opened
        self._file.truncate(size)
        self._map = mmap.mmap(self._file.fileno(), size)
        self._whole = torch.frombuffer(self._map, dtype=torch.uint8)
        self._used = 0

    def start(self, sizes: Sequence[Sequence[int]], device: torch.device) -> Mapped:
        self.outside = sum(map(sum, sizes))
        return self

    def taker(self, half: int) -> Take:
        return self.take

    def take(self, num_bytes: int) -> torch.Tensor:
        start = -(-self._used // PAGE) * PAGE
        self._used = start + num_bytes
        return self._whole[start : self._used]

    def settle(self) -> None:
        """Everything is on the disk, and nothing in memory."""
        os.fsync(self._file.fileno())
        self._map.madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def work(given: Any) -> None:
    """Says how large the model is, then runs as many steps as each line of stdin asks for, and says what came of it."""
    torch.set_grad_enabled(False)
    stack = {"weights": given.weights}
    model = dataclasses.replace(shapes.architecture(given.shape), context=CONTEXT)
    form = assemble.make(given.weights)
    set_threads(None, form)
    if given.work.startswith("paging"):
        most = sum(4 * math.prod(shape) for shape in tensor_shapes(model).values())
        mapped = Mapped(given.folder, most, None if given.work == "paging" else DEFAULT_AHEAD)
        assemble.taker = lambda device: mapped.take  # type: ignore[assignment]
        weights = random_weights(model, 0, torch.float32, form=form, tier=mapped)  # type: ignore[arg-type]
        weights = dataclasses.replace(weights, tier=assemble.make_tier())
        mapped.settle()
    else:
        if given.work == "window":
            stack["weight-tier"] = f"window:bytes={given.bytes},folder={given.folder}"
        tier = assemble.make_tier(stack.get("weight-tier", "memory"))
        weights = random_weights(model, 0, torch.float32, form=form, tier=tier)
    engine = Engine(EngineConfig(stack=stack, kv_bytes=KV, context=CONTEXT), decoder=Decoder(model, weights))
    engine.add(
        Request(
            id="",
            prompt=(1, 2, 3),
            params=SamplingParams(temperature=0, max_tokens=CONTEXT - 9, ignore_eos=True),
        )
    )
    blocks = sum(matrix.nbytes for name, matrix in weights.matrices.items() if name.startswith("blocks."))
    say(total=weights.num_bytes, blocks=blocks, per_pass=getattr(weights.store, "per_pass", 0))
    for line in sys.stdin:
        seconds, tokens = [], []
        for _ in range(int(line)):
            begin = time.perf_counter()
            tokens += [token for delta in engine.step() for token in delta.tokens]
            seconds.append(time.perf_counter() - begin)
        say(seconds=seconds, tokens=tokens)


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


# ---- who starts them ----


class Worker:
    """An engine's process, in a control group."""

    def __init__(self, name: str, given: Any, group: Group, num_bytes: int = 0) -> None:
        words = ["--shape", given.shape, "--weights", given.weights, "--folder", given.folder]
        command = [sys.executable, __file__, "--work", name, "--bytes", str(num_bytes), *words]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=group.enter,
        )
        self.model = self._heard()
        self.tokens: list[int] = []

    def run(self, steps: int) -> list[float]:
        """Seconds of each step."""
        assert self._process.stdin is not None
        print(steps, file=self._process.stdin, flush=True)
        heard = self._heard()
        self.tokens += heard["tokens"]
        return heard["seconds"]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _heard(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"an engine ended: {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found


class Group:
    """A memory control group below this process's own, of version 1, or below the root, of version 2."""

    def __init__(self, name: str, limit: int | None) -> None:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        own = next((path for _, kind, path in lines if kind == "memory"), None)
        if own is not None:
            self.kind, parent, file = 1, GROUPS / "memory" / own.strip("/"), "memory.limit_in_bytes"
        else:
            self.kind, parent, file = 2, GROUPS, "memory.max"
        self._folder = parent / f"headrace-{name}-{os.getpid()}"
        try:
            self._folder.mkdir()
            if limit is not None:
                (self._folder / file).write_text(str(limit))
        except OSError as error:
            raise SystemExit(f"no memory control group can be made in {parent}: {error}") from None

    def enter(self) -> None:
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak(self) -> int:
        return int(
            (self._folder / ("memory.max_usage_in_bytes" if self.kind == 1 else "memory.peak")).read_text()
        )

    def end(self) -> None:
        for _ in range(50):
            with contextlib.suppress(OSError):
                return self._folder.rmdir()
            time.sleep(0.1)


class Disk:
    """How fast a file is read front to back, past the page cache."""

    def __init__(self, folder: str) -> None:
        self._scratch, self._room = Scratch(folder, READ), huge(PIECE)
        self._room.random_(0, 256)
        self._pieces = [self._scratch.write(self._room) for _ in range(READ // PIECE)]
        self.rate()  # once, so that checksums have been compared

    def rate(self) -> float:
        """Bytes per second."""
        begin = time.perf_counter()
        for piece in self._pieces:
            self._scratch.read(piece, self._room)
        return READ / (time.perf_counter() - begin)


@contextlib.contextmanager
def engines(given: Any) -> Iterator[tuple[dict[str, Worker], dict[str, Group], int]]:
    """By name, with their groups, and the limit of all groups but the first."""
    groups = {"memory": Group("memory", None)}
    workers: dict[str, Worker] = {}
    try:
        workers["memory"] = Worker("memory", given, groups["memory"])
        workers["memory"].run(2)
        model = workers["memory"].model
        half, beside = model["total"] // 2, groups["memory"].peak() - model["total"]
        limit = half + beside + KV + SLACK
        for name in list(STEPS)[1:]:
            groups[name] = Group(name.partition(",")[0] + str(len(groups)), limit)
            workers[name] = Worker(name, given, groups[name], model["blocks"] - half)
        yield workers, groups, limit
    finally:
        for worker in workers.values():
            worker.stop()
        for group in groups.values():
            group.end()


def compare(given: Any) -> str:
    disk = Disk(given.folder)
    times: dict[str, list[float]] = {name: [] for name in STEPS}
    rates: list[float] = []
    with engines(given) as (workers, groups, limit):
        for turn in range(given.turns + 1):
            for name in list(STEPS) if turn % 2 else reversed(STEPS):
                seconds = workers[name].run(STEPS[name])
                if turn:  # the first one reads the prompt, and warms up
                    times[name].append(sum(seconds) / len(seconds))
            if turn:
                rates.append(disk.rate())
        few = min(len(worker.tokens) for worker in workers.values())
        assert len({tuple(worker.tokens[:few]) for worker in workers.values()}) == 1, "tokens differ"
        peaks = {name: group.peak() for name, group in groups.items()}
        return table(given, workers, times, rates, limit, peaks)


def table(
    given: Any,
    workers: dict[str, Worker],
    times: dict[str, list[float]],
    rates: list[float],
    limit: int,
    peaks: dict[str, int],
) -> str:
    model, per_pass = workers["memory"].model, workers["window"].model["per_pass"]
    half = model["total"] // 2
    pagings = [name for name in STEPS if name.startswith("paging")]
    rows = [
        f"| engine | peak of its group | s per step | {' | '.join(f'speed of {name}' for name in pagings)} |"
    ]
    rows += ["|---|---|---|" + "---|" * len(pagings)]
    for name, found in times.items():
        cells = [name, f"{peaks[name] / 2**20:.0f} MiB", f"{Spread.of(found):.3f}"]
        for other in pagings:
            ratio = Spread.of([theirs / own for own, theirs in zip(found, times[other], strict=True)])
            cells.append("1" if name == other else f"**{ratio:.2f}x**")
        rows.append(f"| {' | '.join(cells)} |")
    disk = Spread.of([rate / 1e9 for rate in rates])
    reached = Spread.of(
        [per_pass / seconds / rate for seconds, rate in zip(times["window"], rates, strict=True)]
    )
    ahead = read_ahead(given.folder).read_text().strip()
    where = f"{platform.machine()}, level {kernels.isa()}, {os.cpu_count()} cores, {datetime.date.today()}"
    total, blocks, room, each = (
        f"{n / 2**20:.0f} MiB" for n in (model["total"], model["blocks"], limit, per_pass)
    )
    steps = ", ".join(f"{count} steps ({name})" for name, count in STEPS.items())
    return (
        f"# A model of twice the memory: window and paging\n\n{where}.  \n"
        f"`python {' '.join(sys.argv[:-2] if given.out else sys.argv)}`\n\n"
        f"Random weights of {given.shape}, `{given.weights}`: {total} packed, of which {blocks} are blocks. Groups "
        f"have {room}: half of the weights, and {(limit - half) / 2**20:.0f} MiB for what an engine takes beside. One "
        f"sequence, {given.turns} turns of {steps}; median (lowest-highest) of the turns' means, ratios within a turn. "
        "All say the same tokens.\n\n" + "\n".join(rows) + "\n\n"
        f"The disk reads {disk:.2f} GB/s front to back, past the page cache. `window` reads {each} per step, at "
        f"{reached:.2f} of that. The kernel's read-ahead is set to {ahead} KiB here; `paging, 128 KiB` has the "
        f"{DEFAULT_AHEAD} KiB that Linux starts with.\n"
    )


def read_ahead(folder: str) -> Path:
    """The kernel's setting for the disk of this folder: KiB read beyond a missing page."""
    number = os.stat(folder).st_dev
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/queue/read_ahead_kb")


@contextlib.contextmanager
def set_to(setting: Path, value: int) -> Iterator[None]:
    before = setting.read_text()
    setting.write_text(str(value))
    try:
        yield
    finally:
        setting.write_text(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--weights", default="bf16")
    parser.add_argument("--folder", default="/var/tmp")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--bytes", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.work:
        work(given)
    else:
        show(compare(given), given.out)


if __name__ == "__main__":
    main()
