"""A pool that lies in a file: steps that cannot have their bytes fail and are repeated, and nothing is left behind."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import re
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ClashError, ConfigError, TierError
from headrace.params import SamplingParams
from headrace.types import Request
from headrace.weight import memory
from tests.kv.tiers.test_contract import PROMPTS, expect_nothing_left_of
from tests.whole import models
from tests.whole.drive import Outputs, alone, nothing_left, offloaded

PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
CHILD = """
import sys
from pathlib import Path
from tests.kv.tiers.test_offload import ask, engine, PROMPTS
made = engine(Path(sys.argv[1]))
ask(made, PROMPTS)
assert made.stats().counters.tier_written_bytes
print("ready", flush=True)
sys.stdin.read()
"""


def engine(folder: Path, model: str = "deep", share: float = 0.1, **options: Any) -> Engine:
    config = EngineConfig(
        stack={"policy": "sarathi:tokens=16,idle=16", **models.stack(model)},
        page_tokens=4,
        threads=1,
        **options,
    )
    decoder = models.decoder(model)
    return Engine(offloaded(config, decoder, 48, share, str(folder)), decoder=decoder, poison=True)


def add(made: Engine, prompts: list[tuple[int, ...]]) -> None:
    for i, prompt in enumerate(prompts):
        made.add(Request(id=str(i), prompt=prompt, params=PARAMS, arrival=float(i)))


def ask(made: Engine, prompts: list[tuple[int, ...]]) -> tuple[Outputs, list[TierError]]:
    """Tokens, and what went wrong on the way to them."""
    add(made, prompts)
    outputs: Outputs = {}
    failed: list[TierError] = []
    while made.busy:
        try:
            for delta in made.step():
                outputs.setdefault((delta.request, delta.index), []).extend(delta.tokens)
        except TierError as error:
            failed.append(error)
            assert len(failed) < 20, "it fails again and again"
        made.kv.check()
    return outputs, failed


def expected(model: str = "deep") -> Outputs:
    return {
        (str(i), 0): tokens
        for i, prompt in enumerate(PROMPTS)
        for tokens in alone(model, Request(id="", prompt=prompt, params=PARAMS)).values()
    }


def file_of(made: Engine) -> Any:
    residence: Any = made.kv.tables.pool.residence
    return residence._backing


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("model", sorted(models.DEEP))
def test_tokens_are_those_of_a_pool_in_memory(model: str, share: float, tmp_path: Path) -> None:
    made = engine(tmp_path, model, share)
    before = expected(model)
    for _ in range(2):
        assert ask(made, PROMPTS) == (before, [])
    counters = made.stats().counters
    assert counters.tier_written_bytes > 0 and counters.tier_read_bytes > 0, "all of it fitted"
    nothing_left(made)
    assert list(tmp_path.iterdir()) == []


def test_the_next_step_reads_less_with_more_memory(tmp_path: Path) -> None:
    read = []
    for share in (0.0, 0.2, 0.4):
        made = engine(tmp_path, share=share)
        ask(made, PROMPTS)
        read.append(made.stats().counters.tier_read_bytes)
        nothing_left(made)
    assert read[0] > 1.1 * read[1] > 1.2 * read[2] > 0, read


def test_only_chosen_parts_are_read(tmp_path: Path) -> None:
    """Per step, of what the context takes, of decoding alone."""
    read = {}
    for model in ("deep", "deep_landmarks"):
        made = engine(tmp_path, model, 0.0)
        add(made, PROMPTS)
        while made.stats().counters.generated_tokens < 7:
            made.step()
        before = made.stats().counters.tier_read_bytes
        for _ in range(8):
            made.step()
        read[model] = (made.stats().counters.tier_read_bytes - before) / made.kv.bytes_per_token()
        made.close()
    assert 0 < read["deep_landmarks"] < 0.8 * read["deep"], read


def spoil(made: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in the file changes."""
    file = file_of(made)._file
    os.pwrite(
        os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY), b"\x5a" * os.fstat(file.fileno()).st_size, 0
    )


def cut(made: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file ends too early."""
    os.ftruncate(file_of(made)._file.fileno(), 0)


def broken(made: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few reads fail."""
    calls, real = [0], os.preadv

    def fails(*arguments: Any) -> int:
        calls[0] += 1
        if calls[0] % 40 == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments)

    monkeypatch.setattr(os, "preadv", fails)


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("fault", [spoil, cut, broken])
def test_a_step_whose_bytes_are_lost_is_repeated(
    fault: Any, prefix_cache: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the prefix cache would find the same lost bytes again."""
    made = engine(tmp_path, prefix_cache=prefix_cache)
    before = ask(made, PROMPTS)[0]
    fault(made, monkeypatch)
    outputs, failed = ask(made, PROMPTS)
    assert outputs == before == expected()
    if prefix_cache:  # else nothing of the first time is read again
        assert failed
    for error in failed:
        assert "cannot be read back" in str(error) and "\n" not in str(error)
    nothing_left(made)


def test_a_full_disk_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is full for a while: one line in the log, and steps that find no room say what to do."""
    made, full, real = engine(tmp_path), [False], os.pwritev

    def fills(*arguments: Any) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(os, "pwritev", fills)
    add(made, PROMPTS)
    for _ in range(4):
        made.step()
    full[0] = True
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(TierError, match=r"No space left.*free room there") as e,
    ):
        for _ in range(30):
            made.step()
            made.kv.check()
    assert "\n" not in str(e.value)
    assert [r for r in caplog.records if "No space left on device" in r.getMessage()]
    full[0] = False
    outputs, failed = ask(made, [])
    assert not failed and all(tokens == expected()[key][-len(tokens) :] for key, tokens in outputs.items())
    nothing_left(made)


def test_nothing_is_left_however_the_process_ends(tmp_path: Path) -> None:
    expect_nothing_left_of(CHILD, tmp_path)


def test_closing_ends_its_threads(tmp_path: Path) -> None:
    before = threading.active_count()
    made = engine(tmp_path)
    ask(made, PROMPTS)
    assert threading.active_count() > before
    made.close()
    made.close()
    assert threading.active_count() == before


def test_sizes_and_places_are_checked_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = engine(tmp_path)
    config, decoder, size = good.config, good.decoder, good.kv.tables.sizes.page_bytes
    good.close()

    def refused(match: str, spec: str, **changes: Any) -> str:
        stack = {**config.stack, "kv-tier": f"offload:{spec}"}
        with pytest.raises(ConfigError, match=match) as error:
            Engine(dataclasses.replace(config, stack=stack, **changes), decoder=decoder)
        assert "\n" not in str(error.value)
        return str(error.value)

    line = refused("attention to all of it needs .* raise memory to that", f"memory=1K,folder={tmp_path}")
    least = int(re.search(r"needs ([\d,]+)", line)[1].replace(",", ""))  # type: ignore[index]
    refused("raise memory", f"memory={least - 1},folder={tmp_path}")
    stack = {**config.stack, "kv-tier": f"offload:memory={least},folder={tmp_path}"}
    Engine(dataclasses.replace(config, stack=stack), decoder=decoder).close()
    refused("leave --kv-tier out", f"memory={48 * size},folder={tmp_path}")
    refused("is not a size", "memory=much")
    refused("memory=", "folder=/var/tmp")
    refused("choose another folder", f"memory={least},folder={tmp_path / 'missing'}")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=48 * size - 1))
    refused("has 1 MiB free, not the 1 .* lower kv_bytes", f"memory={least},folder={tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_the_pool_is_as_large_as_its_memory_allows(tmp_path: Path) -> None:
    """Unless somebody says how large it is."""
    config = EngineConfig(
        stack={"kv-tier": f"offload:memory=1MiB,folder={tmp_path}"}, page_tokens=4, threads=1
    )
    made = Engine(config, decoder=models.decoder("deep"))
    residence = made.kv.tables.pool.residence
    assert residence is not None and residence.pages == (1 << 20) // residence.cut.least
    made.close()


def test_of_the_pool_only_what_is_in_memory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = engine(tmp_path)
    good.close()
    config, size = good.config, good.stack.one("kv-tier").memory_bytes
    assert config.kv_bytes is not None and size < config.kv_bytes - 1
    monkeypatch.setattr(memory, "available_bytes", lambda device: config.kv_bytes - 1)
    Engine(config, decoder=good.decoder).close()
    monkeypatch.setattr(memory, "available_bytes", lambda device: size - 1)
    with pytest.raises(ConfigError, match="do not fit .* lower memory"):
        Engine(config, decoder=good.decoder)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"device": "cuda"}, "needs cpu"),
        ({"preempt": "swap", "swap_bytes": 1 << 20}, "--preempt recompute"),
        ({"stack": {"kv-codec": "kivi"}}, "whole_blocks: .* use int8"),
        ({"stack": {"kv-codec": models.with_file("kvquant")}}, "use int8"),
        ({"stack": {"kv-layout": models.with_file("razor")}}, "use windows"),
        ({"stack": {"kv-keeper": "d2o"}}, "use streaming"),
    ],
)
def test_what_it_does_not_run_with_is_refused(options: dict[str, Any], why: str, tmp_path: Path) -> None:
    from headrace.compose import compose

    stack = {"kv-tier": f"offload:memory=1MiB,folder={tmp_path}", **options.pop("stack", {})}
    with pytest.raises(ClashError, match=why) as error:
        compose(EngineConfig(stack=stack, **options))
    assert "Nearest stack that runs" in str(error.value)


def test_it_is_never_played_back(tmp_path: Path) -> None:
    made = engine(tmp_path)
    assert not made.stack.recordable() and made.runner.recordings is None
    made.close()
