"""Inputs for the contract suite: rope."""

from collections.abc import Iterator

import torch

from headrace.kernels.rope import rotate
from tests.kernels.case import Case

SAME_BITS_ON_EVERY_LEVEL = True
SHAPES = ((7, 2), (7, 10), (7, 32), (7, 64), (7, 70), (7, 96), (0, 32), (1, 10), (1, 64), (513, 70))
"""Rows, head size."""


def run(case: Case) -> torch.Tensor:
    wide = case["x"].clone()  # may be overwritten
    return rotate(wide[:, 1:], case["cos"], case["sin"], case["positions"])


run_reference = run  # the suite forces the level


def cases() -> Iterator[Case]:
    for rows, size in SHAPES:
        yield _case(f"{rows}x{size}", rows, size, torch.float32)
    yield _case("float64", 5, 32, torch.float64)
    yield _case("bf16", 5, 32, torch.bfloat16)


def _case(name: str, rows: int, size: int, dtype: torch.dtype) -> Case:
    random = torch.Generator().manual_seed(rows + size)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    angles = torch.rand(50, size // 2, generator=random, dtype=torch.float64) * 6
    return Case(
        name,
        {
            "x": torch.randn(rows, 4, size, generator=random, dtype=torch.float64).to(dtype),
            "cos": angles.cos().to(wide),
            "sin": angles.sin().to(wide),
            "positions": torch.randint(0, 50, (rows,), generator=random),
        },
        by_row=("x", "positions"),
    )
