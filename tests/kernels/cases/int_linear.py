"""Inputs for the contract suite: int_linear."""

from collections.abc import Iterator

import torch

from headrace.kernels.before import Norm
from headrace.kernels.int_linear import IntWeight, int_linear, pack
from tests.kernels.case import Case
from tests.kernels.products import extreme, product_case, strided

SAME_BITS_ON_EVERY_LEVEL = True
OF_LARGEST = 1e-6
"""Sums cancel, so an element's error is measured against the largest."""
SHAPES = (  # rows, outputs, inputs, group
    (5, 65, 70, 64),
    (17, 130, 200, 128),
    (0, 64, 64, 32),
    (1, 64, 32, 32),
    (3, 1, 1, 32),
    (33, 48, 96, 1024),
    (401, 64, 160, 64),
    (1, 67, 100, 1024),  # narrower than a group, and no whole number of chunks
    (2, 65, 33, 32),
    (65, 15, 97, 96),
    (513, 70, 130, 64),
    (8, 65, 650, 320),  # groups of more chunks than are passed at a time
    (15, 66, 610, 1024),
)


def run(case: Case) -> torch.Tensor:
    return int_linear(case["x"], case["weight"], case["bias"], before=case["before"], add_TO=case["add"])


run_reference = run  # the suite forces the level


def cases() -> Iterator[Case]:
    """Few rows and many with codes of every size, all shapes with some; zero points with every other one."""
    for bits in range(1, 9):
        for i, (rows, outputs, inputs, group) in enumerate(SHAPES if bits in (3, 4, 8) else SHAPES[:2]):
            asymmetric = (bits + i) % 2 > 0
            name = f"int{bits}{'a' if asymmetric else ''}-{rows}x{outputs}x{inputs}g{group}"
            yield product_case(name, rows, weight(bits, outputs, inputs, group, asymmetric))
    four = weight(4, 100, 96, 32, False)
    yield product_case("bias-and-add", 7, four, bias=True, add=True)
    yield product_case("after-a-norm", 7, four, before=Norm(torch.linspace(0.5, 2, 96), 1e-5, 1.0))
    yield product_case("after-a-silu-gate", 7, four, before="silu")
    yield product_case("after-a-gelu-gate", 7, four, before="gelu_tanh")
    yield strided(product_case("rows-of-a-wider-tensor", 9, four))
    yield extreme(product_case("zeros-and-extremes", 5, four))


def weight(bits: int, outputs: int, inputs: int, group: int, asymmetric: bool) -> IntWeight:
    random = torch.Generator().manual_seed(bits * 1000 + outputs)
    groups = -(-inputs // min(group, inputs))
    codes = torch.randint(0, 1 << bits, (outputs, inputs), generator=random, dtype=torch.uint8)
    scales = (torch.rand(outputs, groups, generator=random) + 0.1).half()
    zeros = torch.randint(0, 1 << bits, (outputs, groups), generator=random, dtype=torch.uint8)
    return pack(codes, scales, zeros if asymmetric else None, group=group, bits=bits)
