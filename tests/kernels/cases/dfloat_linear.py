"""Inputs for the contract suite: dfloat_linear."""

from collections.abc import Iterator

import torch
from torch import Tensor

from headrace.kernels.before import Norm
from headrace.kernels.dfloat_linear import dfloat_linear, pack
from tests.kernels.case import Case
from tests.kernels.products import of_fours, product_case

SAME_BITS_ON_EVERY_LEVEL = False  # as bf16_linear
REFERENCE_ROWS_VARY = True
OF_LARGEST = 2e-6
"""Sums cancel, so an element's error is measured against the largest."""


def run(case: Case) -> torch.Tensor:
    return dfloat_linear(case["x"], case["weight"], case["bias"], before=case["before"], add_TO=case["add"])


run_reference = run  # the suite forces the level


def cases() -> Iterator[Case]:
    for rows in (0, 1, 3, 17, 100):
        yield product_case(f"{rows}x130x200", rows, pack(normal(130, 200)))
    for outputs, inputs in ((1, 1), (64, 32), (65, 33), (16, 7), (200, 700)):
        yield product_case(f"5x{outputs}x{inputs}", 5, pack(normal(outputs, inputs)))
    yield product_case("bias-and-add", 7, pack(normal(100, 96)), bias=True, add=True)
    # powers of two: rounding to bfloat16 after them is the same on every level
    yield of_fours(product_case("after-a-norm", 7, pack(normal(100, 64)), before=Norm(torch.ones(64), 0.0)))
    yield product_case("many-escapes", 9, pack(spread(70, 130)))
    yield product_case("few-escapes-far-apart", 9, pack(rare(64, 200)))


def normal(outputs: int, inputs: int) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(outputs))


def spread(outputs: int, inputs: int) -> Tensor:
    """Exponents over a wide range, and zeros: few have a code."""
    random = torch.Generator().manual_seed(1)
    powers = torch.randint(-20, 10, (outputs, inputs), generator=random)
    signs = torch.randint(-1, 2, (outputs, inputs), generator=random)
    return signs * torch.exp2(powers)


def rare(outputs: int, inputs: int) -> Tensor:
    """One weight in five hundred has no code: gaps are too long for a byte."""
    weight_OI = 1 + torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(2))
    weight_OI.view(-1)[::500] = torch.exp2(torch.arange(-60, -60 + 2 * -(-weight_OI.numel() // 500), 2) % 90)
    return weight_OI
