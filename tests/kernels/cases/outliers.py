"""Inputs for the contract suite: outliers."""

from collections.abc import Iterator

import torch

from headrace.kernels.outliers import choose
from tests.kernels.case import Case

SAME_BITS_ON_EVERY_LEVEL = True
SHAPES = (  # rows, inputs, group, count of each part, parts
    (64, 128, 128, 80, 1),
    (128, 200, 32, 100, 2),
    (128, 200, 128, 100, 2),
    (66, 577, 96, 1, 3),
    (64, 700, 700, 900, 1),
    (2, 70, 64, 35, 1),
    (3, 33, 32, 8, 1),
    (64, 96, 32, 64 * 96, 1),
    (256, 64, 32, 0, 4),
)


def run(case: Case) -> torch.Tensor:
    places = choose(case["rows"], group=case["group"], count=case["count"], parts=case["parts"])
    return places.float()  # the suite compares floats


run_reference = run  # the suite forces the level


def cases() -> Iterator[Case]:
    for rows, inputs, group, count, parts in SHAPES:
        random = torch.Generator().manual_seed(rows * inputs + count)
        normal = torch.randn(rows, inputs, generator=random)
        tailed = normal**3 * torch.exp(torch.randn(rows, 1, generator=random))
        equal = normal.sign() * torch.randint(0, 3, (rows, inputs), generator=random)
        kinds = {"normal": normal, "tailed": tailed, "equal": equal, "zero": 0 * normal}
        for kind, values in kinds.items():
            arguments = {"rows": values.bfloat16(), "group": group, "count": count, "parts": parts}
            yield Case(f"{rows}x{inputs}g{group}-{count}-{kind}", arguments)
