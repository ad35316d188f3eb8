"""Inputs for the contract suite: lut_linear."""

from collections.abc import Iterator

import torch

from headrace.kernels.before import Norm
from headrace.kernels.lut_linear import LutWeight, lut_linear, pack
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
    (131, 64, 160, 64),  # more rows than have their tables in memory at a time
    (1, 67, 100, 1024),  # narrower than a group, and no whole number of chunks
    (2, 65, 33, 32),
    (7, 65, 650, 320),  # groups of several runs
    (15, 66, 610, 1024),
)


def run(case: Case) -> torch.Tensor:
    return lut_linear(
        case["x"], here(case["weight"]), case["bias"], before=case["before"], add_TO=case["add"]
    )


run_reference = run  # the suite forces the level


def cases() -> Iterator[Case]:
    for bits in range(1, 5):
        for rows, outputs, inputs, group in SHAPES:
            name = f"{bits}-{rows}x{outputs}x{inputs}g{group}"
            yield product_case(name, rows, weight(bits, outputs, inputs, group))
    three = weight(3, 100, 96, 32)
    yield product_case("bias-and-add", 7, three, bias=True, add=True)
    yield product_case("many-rows-and-add", 130, three, add=True)
    yield product_case("after-a-norm", 7, three, before=Norm(torch.linspace(0.5, 2, 96), 1e-5, 1.0))
    yield product_case("after-a-silu-gate", 7, three, before="silu")
    yield product_case("after-a-gelu-gate", 7, three, before="gelu_tanh")
    yield strided(product_case("rows-of-a-wider-tensor", 9, three))
    yield extreme(product_case("zeros-and-extremes", 5, three), 1e36)


def weight(bits: int, outputs: int, inputs: int, group: int) -> LutWeight:
    random = torch.Generator().manual_seed(bits * 1000 + outputs)
    groups = -(-inputs // min(group, inputs))
    codes = torch.randint(0, 1 << bits, (outputs, inputs), generator=random, dtype=torch.uint8)
    scales = (torch.rand(outputs, groups, generator=random) + 0.1).half()
    return pack(codes, scales, group=group, bits=bits)


def here(packed: LutWeight) -> LutWeight:
    """The same weight, its planes in the order of the level in use."""
    codes, scales = (part.contiguous() for part in packed.unpack())
    return pack(codes, scales, group=packed.group, bits=packed.bits)
