"""Inputs for the contract suite: bf16_linear."""

from collections.abc import Iterator

import torch

from headrace.kernels.before import Norm
from headrace.kernels.bf16_linear import Bf16Weight, bf16_linear, pack
from tests.kernels.case import Case
from tests.kernels.products import of_fours, product_case, strided

SAME_BITS_ON_EVERY_LEVEL = False
REFERENCE_ROWS_VARY = True
OF_LARGEST = 2e-6
"""Sums cancel, so an element's error is measured against the largest."""


def run(case: Case) -> torch.Tensor:
    return bf16_linear(case["x"], case["weight"], case["bias"], before=case["before"], add_TO=case["add"])


run_reference = run  # the suite forces the level


def cases() -> Iterator[Case]:
    for rows in (0, 1, 2, 3, 6, 17, 33, 100):
        yield product_case(f"{rows}x130x200", rows, weight(130, 200))
    for outputs, inputs in ((1, 1), (64, 32), (65, 33), (16, 7), (200, 1000)):
        yield product_case(f"5x{outputs}x{inputs}", 5, weight(outputs, inputs))
    yield product_case("1x67x97", 1, weight(67, 97))
    yield product_case("513x70x65", 513, weight(70, 65))
    yield product_case("bias-and-add", 7, weight(100, 96), bias=True, add=True)
    # powers of two: rounding to bfloat16 after them is the same on every level
    yield of_fours(product_case("after-a-norm", 7, weight(100, 64), before=Norm(torch.ones(64), 0.0)))
    yield strided(product_case("rows-of-a-wider-tensor", 9, weight(100, 96)))


def weight(outputs: int, inputs: int) -> Bf16Weight:
    random = torch.Generator().manual_seed(outputs)
    return pack(torch.randn(outputs, inputs, generator=random).bfloat16())
