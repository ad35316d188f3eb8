"""bf16_linear beyond the contract: how the instructions of each level round, bit for bit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels import bf16_linear
from headrace.kernels.bf16_linear.reference import CHUNK

NATIVE = kernels.available()[1:]


def fused(sum_TO: Tensor, x_T: Tensor, w_O: Tensor) -> Tensor:
    """sum + x * w, rounded once: exact in double precision for the numbers below."""
    return (sum_TO.double() + x_T.double()[:, None] * w_O.double()).float()


def in_order(x_TI: Tensor, w_OI: Tensor) -> Tensor:
    """generic, avx2: one product after the other."""
    sum_TO = torch.zeros(len(x_TI), len(w_OI))
    for i in range(x_TI.shape[1]):
        sum_TO = fused(sum_TO, x_TI[:, i], w_OI[:, i])
    return sum_TO


def upper_first(x_TI: Tensor, w_OI: Tensor) -> Tensor:
    """avx512, vdpbf16ps: of each pair the second product first."""
    swapped = torch.arange(x_TI.shape[1]) ^ 1
    return in_order(x_TI[:, swapped], w_OI[:, swapped])


def apart(x_TI: Tensor, w_OI: Tensor) -> Tensor:
    """amx, tdpbf16ps: first and second products are summed apart, tile by tile, and added at its end."""
    sum_TO = torch.zeros(len(x_TI), len(w_OI))
    for x, w in zip(x_TI.split(CHUNK, -1), w_OI.split(CHUNK, -1), strict=True):
        sum_TO = sum_TO + (in_order(x[:, ::2], w[:, ::2]) + in_order(x[:, 1::2], w[:, 1::2]))
    return sum_TO


ORDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "generic": in_order,
    "avx2": in_order,
    "avx512": upper_first,
    "amx": apart,
}


def numbers(*shape: int, seed: int) -> Tensor:
    """Multiples of 2^-8 that bfloat16 holds; sums of their products are too long for float32, not for float64."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(-255, 256, shape, generator=random) * torch.exp2(
        -torch.randint(0, 9, shape, generator=random)
    )


@pytest.mark.parametrize("level", NATIVE)
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_sums_are_rounded_in_this_order(rows: int, level: str) -> None:
    x_TI, w_OI = numbers(rows, 100, seed=1), numbers(70, 100, seed=2)
    with kernels.forced(level):
        got = bf16_linear.bf16_linear(x_TI, bf16_linear.pack(w_OI))
    assert torch.equal(got, ORDERS[level](x_TI, w_OI))
    others = [order for order in (in_order, upper_first, apart) if order is not ORDERS[level]]
    assert not any(torch.equal(got, order(x_TI, w_OI)) for order in others), "the numbers tell nothing"


@pytest.mark.parametrize("level", NATIVE)
@pytest.mark.parametrize(
    ("x", "w"),
    [(2.0**-70, 2.0**-70), (2.0**10, 2.0**-130), (-(2.0**-130), 2.0**10)],
    ids=["product", "weight", "row"],
)
def test_what_instructions_make_of_subnormal_numbers(x: float, w: float, level: str) -> None:
    """Those for bfloat16 take them for zeros, and give none."""
    with kernels.forced(level):
        got = bf16_linear.bf16_linear(torch.tensor([[x]]), bf16_linear.pack(torch.tensor([[w]])))
    assert got.item() == (0 if level in ("avx512", "amx") else x * w)
