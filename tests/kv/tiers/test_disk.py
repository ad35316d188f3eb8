"""What only a file does: it is written and read behind the engine's back, leaves nothing, and may fail."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.kv.tiers import disk
from headrace.types import Request
from tests.kv.tiers.test_contract import PAGE, PROMPTS, ask, engine, expect_nothing_left_of, page, spec, start
from tests.whole.drive import GREEDY, nothing_left

CHILD = """
import sys, time, torch
from headrace.kv.tiers import SLOT
live = SLOT.make(f"disk:size=64KiB,stage=4KiB,folder={sys.argv[1]}").start(16, 4096)
for slot in range(16):
    live.put(slot, torch.ones(4096, dtype=torch.uint8))
assert live.get([0, 15], [torch.zeros(4096, dtype=torch.uint8) for _ in range(2)]) == [True, True]
print("ready", flush=True)
sys.stdin.read()
"""


def test_nothing_is_left_however_the_process_ends(tmp_path: Path) -> None:
    expect_nothing_left_of(CHILD, tmp_path)


def test_closing_ends_its_threads(tmp_path: Path) -> None:
    before = threading.active_count()
    live = start("disk", tmp_path, frames=1)
    for slot in range(8):
        live.put(slot, page(slot))
    assert live.get([0], [torch.zeros(PAGE, dtype=torch.uint8)]) == [True]
    assert threading.active_count() > before
    live.close()
    assert threading.active_count() == before


class Gate:
    """os.pwrite or os.preadv, held up until it is opened; counts the calls that went through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.opened, self.calls, self._real = threading.Event(), 0, getattr(os, name)
        monkeypatch.setattr(os, name, self)

    def __call__(self, *arguments: Any) -> int:
        assert self.opened.wait(60), "nobody opened the gate"
        self.calls += 1
        count: int = self._real(*arguments)
        return count


def test_nobody_waits_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, live = Gate(monkeypatch, "pwrite"), start("disk", tmp_path, frames=4)
    for slot in range(4):
        live.put(slot, page(slot))  # returns, though nothing can be written
    found_X = torch.zeros(PAGE, dtype=torch.uint8)
    assert live.get([2], [found_X]) == [True] and torch.equal(found_X, page(2)), "it is on the stage"
    assert gate.calls == 0
    gate.opened.set()
    live.close()


def test_what_was_read_ahead_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = start("disk", tmp_path, frames=3)
    for slot in range(8):
        live.put(slot, page(slot))
    gate = Gate(monkeypatch, "preadv")
    live.ahead([0, 1, 2, 3])  # returns, though nothing can be read; and there is no room for the last
    live.ahead([0, 1, 2, 3])
    gate.opened.set()
    pages = torch.zeros((3, PAGE), dtype=torch.uint8)
    assert live.get([0, 1, 2], list(pages)) == [True] * 3
    assert gate.calls == 3 and all(torch.equal(pages[i], page(i)) for i in range(3))
    assert live.get([3], [pages[0]]) == [True] and gate.calls == 4
    live.close()


def test_the_engine_reads_ahead_for_the_one_that_waits(tmp_path: Path) -> None:
    """While somebody else runs in the pool's pages."""
    made = engine("disk", tmp_path, max_seqs=1)
    answers = [ask(made, prompt) for prompt in PROMPTS]
    live = live_of(made)
    made.add(Request(id="runs", prompt=PROMPTS[2], params=GREEDY))
    made.step()
    made.add(Request(id="waits", prompt=PROMPTS[0], params=GREEDY))
    before = live.read
    made.step()
    assert live.read > before and made.stats().counters.promoted_pages == 0
    made.cancel("runs")
    made.cancel("waits")
    assert ask(made, PROMPTS[0]) == answers[0]
    nothing_left(made)


def live_of(made: Engine) -> Any:
    arrivals = made.kv.tables._arrivals
    assert arrivals is not None
    return arrivals.shelf._live


def spoil(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in the file changes."""
    live._writer.submit(lambda: None).result()  # after what is being written
    size = os.fstat(live._file.fileno()).st_size
    os.pwrite(live._file.fileno(), b"\x5a" * size, 0)


def cut(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file ends too early."""
    live._writer.submit(lambda: None).result()
    os.ftruncate(live._file.fileno(), 0)


def broken(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be read."""

    def fails(*arguments: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fails)


@pytest.mark.parametrize("fault", [spoil, cut, broken])
def test_what_cannot_be_read_is_computed_again(
    fault: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = engine("disk", tmp_path)
    answers = [ask(made, prompt) for prompt in PROMPTS]
    fault(live_of(made), monkeypatch)
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        for _ in range(2):
            assert [ask(made, prompt) for prompt in PROMPTS] == answers
            made.kv.check()
    [record] = caplog.records
    line = record.getMessage()
    assert str(tmp_path) in line and "computed again" in line and "\n" not in line
    nothing_left(made)


def test_a_full_disk_takes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls, real = [0], os.pwrite

    def fills(*arguments: Any) -> int:
        calls[0] += 1
        if calls[0] > 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", fills)
    made = engine("disk", tmp_path)
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        answers = [ask(made, prompt) for prompt in PROMPTS]
        for _ in range(2):
            assert [ask(made, prompt) for prompt in PROMPTS] == answers
            made.kv.check()
    [record] = caplog.records
    assert "No space left on device" in record.getMessage()
    stopped = calls[0]
    assert [ask(made, prompt) for prompt in PROMPTS] == answers
    assert calls[0] == stopped, "it goes on trying"
    nothing_left(made)


def test_its_bound_must_be_free(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(ConfigError, match="MiB free, not .* lower size"):
        engine("disk", tmp_path, size=2 * free)
    with pytest.raises(ConfigError, match="choose another folder"):
        engine("disk", tmp_path / "missing")
    with pytest.raises(ConfigError, match="no room for a page .* raise stage"):
        disk.Disk(folder=str(tmp_path), stage="100").start(8, PAGE)
    assert spec("disk", tmp_path) and list(tmp_path.iterdir()) == []
