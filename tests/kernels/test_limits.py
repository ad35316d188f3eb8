"""The loops that measure the machine: they stay within their data, and say how much they did."""

import pytest
import torch

from headrace import kernels

NATIVE = kernels.available()[1:]


@pytest.mark.parametrize("level", NATIVE)
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, (1 << 20) + 700])
def test_memory_is_filled_and_read_to_its_end(size: int, level: str) -> None:
    room = torch.zeros(size + 128, dtype=torch.uint8)
    data = torch.empty(size, dtype=torch.uint8)
    with kernels.forced(level):
        kernels.native("limits_fill")(room[64 : 64 + size], 7)
        kernels.native("limits_fill")(data, 7)
        kernels.native("limits_read")(data)
    assert (data == 7).all() and (room[64 : 64 + size] == 7).all()
    assert not room[:64].any() and not room[64 + size :].any()


@pytest.mark.parametrize("level", NATIVE)
@pytest.mark.parametrize("what", ["int8", "float32", "bf16"])
def test_operations_are_counted(what: str, level: str) -> None:
    with kernels.forced(level):
        run = kernels.native(f"limits_{what}")
        if run is None:
            pytest.skip("no such instruction")
        assert run(3, 4) == 2 * run(3, 2) == 2 * run(2, 3) > 0
