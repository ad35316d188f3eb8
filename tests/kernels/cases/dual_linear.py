"""Inputs for the contract suite: dual_linear."""

from collections.abc import Iterator
from itertools import product

import torch

from headrace.kernels.before import Norm
from headrace.kernels.dual_linear import DualWeight, Parts, dual_linear, pack
from tests.kernels.case import Case
from tests.kernels.products import extreme, product_case, strided

SAME_BITS_ON_EVERY_LEVEL = True
SHAPES = (  # rows, outputs, inputs, group
    (0, 64, 64, 32),
    (1, 64, 32, 32),
    (1, 130, 1000, 128),
    (1, 67, 100, 1024),
    (2, 64, 96, 32),
    (3, 1, 1, 32),
    (5, 65, 70, 64),
    (17, 130, 200, 128),
    (33, 48, 96, 1024),
    (64, 130, 700, 512),
    (401, 64, 160, 64),
    (513, 70, 288, 288),
)


def run(case: Case) -> torch.Tensor:
    return dual_linear(case["x"], case["weight"], case["bias"], before=case["before"], add_TO=case["add"])


run_reference = run  # the suite forces the level


def cases() -> Iterator[Case]:
    for (rows, outputs, inputs, group), bits in product(SHAPES, (3, 4)):
        packed = weight(outputs, inputs, group, bits)
        yield product_case(f"{rows}x{outputs}x{inputs}g{group}-{bits}bits", rows, packed)
    small = weight(100, 96, 32)
    yield product_case("bias-and-add", 7, small, bias=True, add=True)
    yield product_case("after-a-norm", 7, small, before=Norm(torch.linspace(0.5, 2, 96), 1e-5, 1.0))
    yield product_case("after-a-silu-gate", 7, small, before="silu")
    yield product_case("after-a-gelu-gate", 7, small, before="gelu_tanh")
    yield strided(product_case("rows-of-a-wider-tensor", 9, small))
    yield extreme(product_case("zeros-and-extremes", 5, small))


def weight(outputs: int, inputs: int, group: int, bits: int = 4) -> DualWeight:
    """Codes, steps and zero points of every kind; w8 is anything in [-128, 127]."""
    random = torch.Generator().manual_seed(1000 * outputs + inputs)
    groups = -(-inputs // min(group, inputs))
    steps = torch.randint(1, (1 << (8 - bits)) + 1, (outputs, groups), generator=random, dtype=torch.uint8)
    zeros = torch.randint(0, 1 << bits, (outputs, groups), generator=random, dtype=torch.uint8)
    codes = torch.randint(0, 1 << bits, (outputs, inputs), generator=random)
    step_OI, zero_OI = (t.long().repeat_interleave(group, 1)[:, :inputs] for t in (steps, zeros))
    codes = codes.clamp(min=zero_OI - 128 // step_OI, max=zero_OI + 127 // step_OI).to(torch.uint8)
    parts = Parts(codes, steps, zeros, torch.rand(outputs, generator=random) + 0.01)
    return pack(parts, group=group, bits=bits)
