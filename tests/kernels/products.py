"""Inputs for products: what the contract suites of all packed weights ask."""

from __future__ import annotations

from typing import Any

import torch

from headrace.kernels.before import Before
from tests.kernels.case import Case


def product_case(
    name: str, rows: int, packed: Any, *, before: Before = None, bias: bool = False, add: bool = False
) -> Case:
    """Rows for a weight that knows its width and outputs; twice as wide before a gate."""
    random = torch.Generator().manual_seed(rows)
    width = packed.width * (2 if isinstance(before, str) else 1)
    arguments = {
        "x": torch.randn(rows, width, generator=random),
        "weight": packed,
        "before": before,
        "bias": torch.randn(packed.outputs, generator=random) if bias else None,
        "add": torch.randn(rows, packed.outputs, generator=random) if add else None,
    }
    return Case(name, arguments, by_row=("x", "add") if add else ("x",))


def strided(case: Case) -> Case:
    """Its rows lie in those of a wider tensor."""
    case.arguments["x"] = torch.cat([case["x"], case["x"].flip(0)], dim=1)[:, 5 : 5 + case["x"].shape[1]]
    return case


def of_fours(case: Case) -> Case:
    """Rows of 4 and -4: what follows has powers of two, which every level rounds alike."""
    case.arguments["x"] = case["x"].sign() * 4
    return case


def extreme(case: Case, large: float = 1e37) -> Case:
    """A row of zeros, one that is almost subnormal, one near the largest float, and one with a single large value."""
    scale = torch.tensor([0.0, 1e-37, large, 1.0, 1.0])
    case.arguments["x"] = case["x"] * scale[:, None]
    case.arguments["x"][3, 7] = 1e6
    return case
