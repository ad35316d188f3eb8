"""The window's own promises: what stays, how much memory it takes, and what is left when something fails."""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError, ModelError
from headrace.forward.decoder import Decoder
from headrace.forward.load import random as random_decoder
from headrace.types import Request, SamplingParams
from headrace.weight.assemble import make, make_tier
from headrace.weight.tiers.window import choose
from tests.weight import folders
from tests.weight.tiers.test_contract import architecture, sizes

HALF = sizes(architecture(), "bf16")["half"]


def decoder(folder: Path, form: str = "bf16", num_bytes: int = HALF) -> Decoder:
    tier = make_tier(f"window:bytes={num_bytes},folder={folder}")
    return random_decoder(architecture(), 0, torch.float32, form=make(form), tier=tier)


def engine(folder: Path) -> Engine:
    stack = {"weights": "bf16", "weight-tier": f"window:bytes={HALF},folder={folder}"}
    made = Engine(EngineConfig(stack=stack, threads=1), decoder=decoder(folder))
    made.add(
        Request(id="a", prompt=(1, 2, 3), params=SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))
    )
    return made


def tokens(made: Engine) -> list[int]:
    found: list[int] = []
    while made.busy:
        found += [token for delta in made.step() for token in delta.tokens]
    return found


# ---- what stays ----


def memory(costs: list[int], stay: frozenset[int]) -> int:
    rest = [half for half in range(len(costs)) if half not in stay]
    buffers = [max((costs[half] for half in rest if half % 2 == kind), default=0) for kind in (0, 1)]
    return sum(costs[half] for half in stay) + sum(buffers)


@pytest.mark.parametrize("seed", range(40))
def test_as_much_stays_as_fits(seed: int) -> None:
    draw = random.Random(seed)
    costs = [draw.choice([1, 2, 2, 5, 9]) for _ in range(2 * draw.randrange(2, 12))]
    least = memory(costs, frozenset())
    budget = draw.randrange(least, max(least + 1, sum(costs)))
    stay = choose(costs, budget)
    assert memory(costs, stay) <= budget
    for half in set(range(len(costs))) - stay:
        assert memory(costs, stay | {half}) > budget, "there was room for another"


def test_what_stays_is_spread_evenly() -> None:
    stay = choose([1, 5] * 16, 6 * 5)
    whole = [block for block in range(16) if {2 * block, 2 * block + 1} <= stay]
    gaps = [b - a for a, b in itertools.pairwise(whole)]
    assert len(whole) == 4 and set(gaps) == {4} and whole[0] == 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("bytes=100", "bytes=100 is less than one block: give it 32768 or more"),
        ("bytes=1G", "holds all blocks, which take 163840: leave --weight-tier out"),
        ("bytes=lots", "bytes='lots' is not a size"),
        ("folder=/tmp", "needs 'bytes': write window:bytes="),
        (f"bytes={HALF},folder=/nowhere", "no file can be made in /nowhere: No such file or directory"),
    ],
)
def test_bad_options_give_one_line(option: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        random_decoder(
            architecture(), 0, torch.float32, form=make("bf16"), tier=make_tier(f"window:{option}")
        )
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_it_is_not_recorded(tmp_path: Path) -> None:
    """Between the native calls of a pass, a thread has to be waited for."""
    assert engine(tmp_path).runner.recordings is None


def test_blocks_that_are_scattered_over_files(tmp_path: Path) -> None:
    """Halves are packed one after the other, however a checkpoint has them."""
    config = {**folders.CONFIG, "num_hidden_layers": 11}  # in the file, layer 10 stands before layer 2
    model = folders.write(tmp_path / "model", config)
    shards = folders.write_shards(tmp_path / "shards", config)
    for folder in (model, shards):
        found = []
        for spec in ("memory", f"window:bytes=60K,folder={tmp_path}"):
            made = Engine(
                EngineConfig(model=str(folder), stack={"weight-tier": spec}, dtype="float64", threads=1)
            )
            params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
            made.add(Request(id="a", prompt=(1, 2, 3), params=params))
            found.append(tokens(made))
        assert found[0] == found[1]


def test_weights_that_take_more_than_their_format_says(tmp_path: Path) -> None:
    """Formats that depend on the weights guess; what they go beyond is not taken."""
    form = make("dfloat11")
    size = form.num_bytes(64, 64, torch.float32)
    store = make_tier(f"window:bytes={2 * size + 8192},folder={tmp_path}").start(
        [[size]] * 6, torch.device("cpu")
    )
    for half in (0, 1):
        packing = form.start(64, 64, torch.float32, store.taker(half))
        packing.put(0, torch.randn(64, 64) * torch.randint(-30, 30, (64, 64)).float().exp2())
        assert packing.finish().nbytes > 1.5 * size
    store.seal(0)
    with pytest.raises(ModelError, match="take more than their format says: .* raise it a little"):
        store.seal(1)


# ---- when something fails ----


def test_a_full_disk_is_seen_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = os.statvfs(tmp_path)
    full = os.statvfs_result((*room[:4], 3, *room[5:]))
    monkeypatch.setattr(os, "statvfs", lambda folder: full)
    monkeypatch.setattr(os, "pwrite", lambda *_: pytest.fail("something was written"))
    with pytest.raises(
        ModelError, match="GiB free, and .* GiB of weights go there: free some, or name another"
    ):
        decoder(tmp_path)


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.pwrite, itertools.count()

    def full(*arguments: object) -> int:
        if next(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ModelError, match=f"cannot be written to {tmp_path}: it is full; name another folder"):
        decoder(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["error", "short", "other bytes"])
def test_what_cannot_be_read_ends_the_step_and_no_more(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step raises; the next one reads again, and no token differs."""
    expected = tokens(engine(tmp_path))
    real, broken = os.preadv, [False]

    def read(fd: int, buffers: list[memoryview], start: int) -> int:
        if not broken[0]:
            return real(fd, buffers, start)
        if fault == "error":
            raise OSError(errno.EIO, "Input/output error")
        count = real(fd, buffers, start)
        if fault == "short":
            return 0
        buffers[0][count // 2] ^= 1
        return count

    monkeypatch.setattr(os, "preadv", read)
    broken[0] = fault == "other bytes"  # checksums are compared when bytes are read first
    made = engine(tmp_path)
    found: list[int] = []
    if fault != "other bytes":
        found += [token for delta in made.step() for token in delta.tokens]
        broken[0] = True
    why = "are not those written" if fault == "other bytes" else "cannot be read back"
    for _ in range(2):
        with pytest.raises(ModelError, match=f"{why}.*name another folder") as caught:
            made.step()
        assert str(tmp_path) in str(caught.value)
    broken[0] = False
    assert found + tokens(made) == expected


def test_short_reads_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tokens(engine(tmp_path))
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, start: real(fd, [buffers[0][:4096]], start))
    assert tokens(engine(tmp_path)) == expected


def test_without_direct_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tokens(engine(tmp_path))

    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("fcntl.fcntl", refuse)
    assert tokens(engine(tmp_path)) == expected


LIVE = """
import sys, torch
from pathlib import Path
from tests.weight.tiers.test_window import engine
made = engine(Path(sys.argv[1]))
made.step()
print("running", flush=True)
sys.stdin.read()
"""


def test_nothing_is_left_of_a_killed_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LIVE, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "running\n"
    files = [os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    assert any(str(tmp_path) in name for name in files), "the file is elsewhere"
    assert not list(tmp_path.iterdir()), "it has a name"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(tmp_path.iterdir())


# ---- memory ----

PEAK = """
import sys, torch
from headrace.commands import shapes
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.forward.load import random
from headrace.types import Request, SamplingParams
from headrace.weight.assemble import make, make_tier
import dataclasses
torch.set_grad_enabled(False)

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

def run(model, spec):
    stack = {"weights": "int8", "weight-tier": spec}
    decoder = random(model, 0, torch.float32, form=make("int8"), tier=make_tier(spec))
    engine = Engine(EngineConfig(stack=stack, threads=1, kv_bytes=8 << 20), decoder=decoder)
    engine.add(Request(id="a", prompt=(1,) * 40, params=SamplingParams(temperature=0, max_tokens=4)))
    while engine.busy:
        engine.step()
    return decoder.weight_bytes

model = dataclasses.replace(shapes.architecture("qwen2.5-0.5b"), context=256, vocab=512)
run(dataclasses.replace(model, blocks=model.blocks[:1]), "memory")  # whatever is allocated once
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts anew
before = status("VmRSS:")
print(run(model, sys.argv[1]), status("VmHWM:") - before)
"""


def peak(spec: str) -> tuple[int, int]:
    """Bytes of weights, and of memory that running them took, loading included."""
    done = subprocess.run([sys.executable, "-c", PEAK, spec], capture_output=True, text=True, check=True)
    weights, grown = map(int, done.stdout.split())
    return weights, grown


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are told by Linux")
def test_memory_stays_within_what_was_allowed(tmp_path: Path) -> None:
    allowed, beside = 90 << 20, (8 << 20) + (40 << 20)  # keys and values; what loads and computes
    weights, grown = peak(f"window:bytes={allowed},folder={tmp_path}")
    assert weights > 3 * allowed, "the test is too easy"
    assert grown <= allowed + beside
