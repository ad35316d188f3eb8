"""What the machine does at most. No speed is asserted: processors are noisy, and neighbours noisier."""

from __future__ import annotations

import math

import pytest
import torch

from headrace import kernels, limits
from headrace.limits import Limits

LEVELS = kernels.available()
NATIVE = LEVELS[1:]
IMPLAUSIBLE = 1e13  # bytes per second: a cache answers, or nothing was read


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_is_measured(level: str) -> None:
    with kernels.forced(level):
        found = limits.measure(size=32 << 20, seconds=0.01)
    rates = [rate for rate in (found.read, found.int8, found.bf16, found.float32) if rate is not None]
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)
    assert found.read < IMPLAUSIBLE
    assert (found.int8 is not None) == (level != "reference")
    assert (found.bf16 is not None) == (level in ("avx512", "amx"))
    assert set(found.row()) >= {"read_gb_s", "float32_gop_s"}


@pytest.mark.parametrize("level", NATIVE)
def test_operations_grow_with_the_work(level: str) -> None:
    with kernels.forced(level):
        for name in limits.ARITHMETIC:
            run = kernels.native(f"limits_{name}")
            assert run is None or run(3, 4) == 12 * run(1, 1) > 0


@pytest.mark.parametrize("level", NATIVE)
def test_bytes_are_filled_to_the_last(level: str) -> None:
    with kernels.forced(level):
        fill, read = kernels.native("limits_fill"), kernels.native("limits_read")
        assert fill is not None and read is not None
        for size in (0, 1, 511, (1 << 20) + 1, 3 << 20):
            data = torch.zeros(size + 1, dtype=torch.uint8)
            fill(data[:size], 7)
            read(data[:size])
            assert data[:size].eq(7).all() and data[size] == 0


@pytest.mark.skipif(not NATIVE, reason="no native module")
def test_bad_arguments_are_refused() -> None:
    run, read = kernels.native("limits_int8"), kernels.native("limits_read")
    assert run is not None and read is not None
    for pieces, rounds in ((0, 1), (1, 0), (-1, 5), (1 << 20, 1 << 20)):
        with pytest.raises(ValueError, match="must be positive"):
            run(pieces, rounds)
    with pytest.raises(ValueError, match="contiguous uint8"):
        read(torch.zeros(4))
    with pytest.raises(ValueError, match="contiguous uint8"):
        read(torch.zeros(8, dtype=torch.uint8)[::2])


def test_the_larger_bound_binds() -> None:
    found = Limits(read=10.0, int8=100.0, bf16=20.0, float32=50.0)
    assert found.seconds(10, 50, "int8") == (1.0, "read")
    assert found.seconds(10, 200, "int8") == (2.0, "int8")
    assert found.seconds(10, 200, "bf16") == (4.0, "float32")  # faster without the instruction
    assert Limits(10.0, None, None, 50.0).seconds(0, 100, "int8") == (2.0, "float32")


def test_the_best_of_two_measurements() -> None:
    first, second = Limits(1.0, None, 3.0, 9.0), Limits(2.0, 5.0, None, 8.0)
    assert first.best(second) == Limits(2.0, 5.0, 3.0, 9.0)


def test_memory_in_huge_pages_is_private() -> None:
    """Shared memory has a setting of its own for huge pages, which is off nearly everywhere."""
    from pathlib import Path

    from headrace.weight.memory import huge

    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    data = huge(1 << 20)
    for line in maps.read_text().splitlines():
        area, flags = line.split()[:2]
        first, end = (int(text, 16) for text in area.split("-"))
        if first <= data.data_ptr() < end:
            assert flags == "rw-p", line
            return
    pytest.fail("the memory is nowhere")
