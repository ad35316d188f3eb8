"""Inputs for the contract suite: sparse_add."""

from collections.abc import Iterator

import torch

from headrace.kernels.before import Before, Norm
from headrace.kernels.sparse_add import pack, sparse_add
from tests.kernels.case import Case

SAME_BITS_ON_EVERY_LEVEL = True
OF_LARGEST = 2e-6
"""Sums cancel, so an element's error is measured against the largest."""


def run(case: Case) -> torch.Tensor:
    return sparse_add(case["x"], case["weight"], case["out"].clone(), before=case["before"])


run_reference = run  # the suite forces the level


def cases() -> Iterator[Case]:
    for rows in (0, 1, 2, 16, 17, 50):
        yield _case(f"{rows}x130x200", rows, 130, 200)
    for outputs, inputs in ((1, 1), (64, 32), (65, 33), (3, 1000)):
        yield _case(f"5x{outputs}x{inputs}", 5, outputs, inputs)
    yield _case("nothing-chosen", 3, 20, 40, share=0)
    yield _case("everything-chosen", 3, 20, 40, share=1)
    yield _case("after-a-norm", 7, 100, 64, before=Norm(torch.linspace(0.5, 1.5, 64), 1e-5))
    yield _case("after-a-gate", 7, 100, 64, before="silu")
    wide = _case("rows-of-a-wider-tensor", 9, 100, 96)
    wide.arguments["x"] = torch.cat([wide["x"], wide["x"].flip(0)], dim=1)[:, 5:101]
    yield wide


def _case(
    name: str, rows: int, outputs: int, inputs: int, *, share: float = 0.1, before: Before = None
) -> Case:
    random = torch.Generator().manual_seed(rows + outputs)
    weight = pack(
        torch.randn(outputs, inputs, generator=random),
        torch.rand(outputs, inputs, generator=random) < share,
    )
    wide = 2 * inputs if isinstance(before, str) else inputs
    arguments = {
        "x": torch.randn(rows, wide, generator=random),
        "weight": weight,
        "before": before,
        "out": torch.randn(rows, outputs, generator=random),
    }
    return Case(name, arguments, by_row=("x", "out"))
