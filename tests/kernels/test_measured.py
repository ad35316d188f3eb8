"""Choices that were measured: kept by machine, never a reason to fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headrace import kernels
from headrace.kernels import int_linear, measured
from headrace.kernels.int_linear import crossing
from headrace.kernels.int_linear.layout import IntWeight
from tests.kernels.cases.int_linear import weight


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "measured.json"


def never() -> int:
    raise AssertionError("measured again")


def test_measured_once(path: Path) -> None:
    assert measured.lookup("a", 9, lambda: 7) == 7
    assert measured.lookup("b", 9, lambda: 2) == 2
    assert measured.lookup("a", 9, never) == 7
    ((machine, table),) = json.loads(path.read_text()).items()
    assert table == {"a": 7, "b": 2} and machine
    assert not list(path.parent.glob("tmp*")), "something was left behind"


def test_another_machine_measures_for_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured.lookup("a", 9, lambda: 7)
    monkeypatch.setattr(measured, "_processor", lambda: "another")
    assert measured.lookup("a", 9, lambda: 3) == 3
    assert len(json.loads(path.read_text())) == 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"x": 3}', '{"MACHINE": {"a": 99}}', '{"MACHINE": {"a": "7"}}']
)
def test_a_damaged_file_is_replaced(text: str, path: Path) -> None:
    path.parent.mkdir()
    path.write_text(text.replace("MACHINE", measured._machine()))
    assert measured.lookup("a", 9, lambda: 7) == 7
    assert measured.lookup("a", 9, never) == 7


def test_a_cache_that_cannot_be_written_costs_the_measuring_only(path: Path) -> None:
    path.parent.write_text("not a folder")
    assert measured.lookup("a", 9, lambda: 7) == 7


@pytest.mark.parametrize(
    ("ratios", "limit"),
    [
        ({2: 0.5, 4: 0.8, 8: 0.9, 16: 1.2}, 8),
        ({2: 1.5, 4: 1.2, 8: 1.3, 16: 1.4}, 1),
        ({2: 0.5, 4: 0.6, 8: 0.7, 16: 0.8}, 16),
        ({2: 0.5, 4: 1.01, 8: 0.7, 16: 1.4}, 8),  # noise does not decide
    ],
)
def test_the_limit_with_the_least_regret(ratios: dict[int, float], limit: int) -> None:
    assert crossing.best_limit({rows: (ratio, 1.0) for rows, ratio in ratios.items()}) == limit


@pytest.mark.skipif(kernels.isa() == kernels.REFERENCE, reason="there is one way only")
def test_both_ways_give_the_same_bits(path: Path) -> None:
    packed = weight(4, 130, 256, 64, True)
    x = torch.randn(17, 256, generator=torch.Generator().manual_seed(1))
    results = [int_linear.int_linear(x, replace(packed, few=few)) for few in (0, 5, 16, 17, 99)]
    assert all(torch.equal(result, results[0]) for result in results)
    limit = crossing.few_rows(packed)
    assert limit in (1, *crossing.ROWS)


def test_a_large_matrix_is_timed_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the last call has left in the cache is not what a model finds there."""
    seen: list[torch.Tensor] = []

    def call(part: IntWeight, x_TI: torch.Tensor, out_TO: torch.Tensor) -> float:
        seen.append(part.packed)
        return 1.0

    monkeypatch.setattr(crossing, "_MOST_OUTPUTS", 64)
    monkeypatch.setattr(crossing, "_call", call)
    packed = weight(4, 130, 256, 64, False)
    crossing._time(packed)
    assert torch.equal(torch.cat(seen[:3]), packed.packed)  # three blocks of 64 outputs
    assert seen[3].data_ptr() == seen[0].data_ptr()


@pytest.mark.skipif(kernels.isa() == kernels.REFERENCE, reason="there is nothing to time")
def test_a_matrix_is_timed_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    native = kernels.native

    def watched(name: str) -> object:
        return (lambda data: happened.append("forget")) if name == "limits_forget" else native(name)

    def call(part: IntWeight, x_TI: torch.Tensor, out_TO: torch.Tensor) -> float:
        happened.append("call")
        return 1.0

    monkeypatch.setattr(kernels, "native", watched)
    monkeypatch.setattr(crossing, "_call", call)
    packed = weight(4, 130, 256, 64, False)
    crossing._time(packed)
    assert set(happened) == {"call"}  # a little matrix stays in a cache between steps, too
    happened.clear()
    monkeypatch.setattr(crossing, "_SMALL", 1000)
    crossing._time(packed)
    assert happened[::2].count("forget") == happened[1::2].count("call") == len(happened) / 2
