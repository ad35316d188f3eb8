"""A processor whose AMX faults is found out in a process of its own, once, and only where it could matter."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.forward import processor

CPU, BF16 = torch.device("cpu"), torch.bfloat16


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes that the next probes will have."""
    codes: list[int] = []

    def run(arguments: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(arguments, codes.pop(0))

    monkeypatch.setattr(processor.subprocess, "run", run)
    monkeypatch.setattr(processor, "_announces_amx", lambda: True)
    monkeypatch.delenv(processor._LIMIT, raising=False)
    return codes


def test_a_probe_that_dies_limits_onednn_and_says_so(
    probes: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(processor._LIMIT, "")  # so that the change is undone
    monkeypatch.delenv(processor._LIMIT)
    probes.append(-4)
    processor.guard_bfloat16(CPU, BF16)
    assert processor.os.environ[processor._LIMIT] == "AVX512_CORE_BF16"
    assert len(caplog.records) == 1 and "AMX" in caplog.text
    monkeypatch.delenv(processor._LIMIT)


def test_a_probe_that_lives_changes_nothing(probes: list[int]) -> None:
    probes.append(0)
    processor.guard_bfloat16(CPU, BF16)
    assert processor._LIMIT not in processor.os.environ and not probes


def test_no_probe_where_it_cannot_matter(probes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    processor.guard_bfloat16(CPU, torch.float32)
    processor.guard_bfloat16(torch.device("cuda"), BF16)
    monkeypatch.setattr(processor, "_announces_amx", lambda: False)
    processor.guard_bfloat16(CPU, BF16)  # a probe would have popped from an empty list


def test_cpuinfo_is_read(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    assert not processor._announces_amx(file)
    file.write_text("flags : avx512f amx_bf16 amx_tile")
    assert processor._announces_amx(file)
