"""Inputs for the contract suite: neurons."""

from collections.abc import Iterator

import torch

from headrace.kernels.before import Norm
from headrace.kernels.neurons import neurons
from tests.kernels.case import Case

SAME_BITS_ON_EVERY_LEVEL = True
REFERENCE_ROWS_VARY = True
OF_LARGEST = 2e-6  # sums of many numbers of either sign

SHAPES = ((0, 16, 16), (1, 1, 1), (1, 32, 700), (3, 33, 257), (8, 40, 300), (9, 40, 300), (30, 150, 513))
"""Rows, width, neurons: few and many rows, one segment and several."""


def run(case: Case) -> torch.Tensor:
    add = None if case["add"] is None else case["add"].clone()
    weights = (case["up"], case["down"], case["threshold"], case["act"])
    return neurons(case["x"], case["gate"].clone(), *weights, before=case["before"], add_TD=add)


run_reference = run


def cases() -> Iterator[Case]:
    for rows, width, count in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            yield _case(f"{rows}x{width}x{count}-{str(dtype)[6:]}", rows, width, count, dtype)
    norm = Norm(torch.linspace(0.5, 2, 40), 1e-5, 1.0)
    yield _case("norm", 6, 40, 300, torch.bfloat16, before=norm)
    yield _case("norm-many-rows", 21, 40, 300, torch.float32, before=norm)
    yield _case("gelu", 6, 40, 300, torch.float32, act="gelu_tanh")
    yield _case("added", 6, 40, 300, torch.bfloat16, add=True)
    yield _case("nobody-leaves", 5, 40, 300, torch.float32, threshold=0.0)
    yield _case("everybody-leaves", 5, 40, 300, torch.float32, threshold=1e9)
    yield _case("float64", 6, 40, 300, torch.float64)


def _case(
    name: str,
    rows: int,
    width: int,
    count: int,
    dtype: torch.dtype,
    *,
    threshold: float = 0.3,
    act: str = "silu",
    before: Norm | None = None,
    add: bool = False,
) -> Case:
    random = torch.Generator().manual_seed(rows + width + count)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    arguments = {
        "x": draw(rows, width).to(wide),
        "gate": draw(rows, count).to(wide),
        "up": draw(count, width).to(dtype),
        "down": draw(count, width).to(dtype),
        "threshold": threshold,
        "act": act,
        "before": before,
        "add": draw(rows, width).to(wide) if add else None,
    }
    by_row = ("x", "gate", "add") if add else ("x", "gate")
    return Case(name, arguments, () if dtype == torch.float64 else by_row)  # which PyTorch multiplies
