"""Inputs for the contract suite: route. Its way there and back is under test in test_route.py."""

from collections.abc import Iterator

import torch
from torch import Tensor

from headrace.kernels.route import reference, route
from tests.kernels.case import Case

SAME_BITS_ON_EVERY_LEVEL = True
SHAPES = (  # rows, experts, active, renormalise
    (0, 8, 2, False),
    (1, 1, 1, True),
    (1, 128, 8, False),
    (5, 4, 4, True),
    (7, 60, 5, False),
    (7, 60, 5, True),
    (300, 64, 8, False),
    (300, 64, 8, True),
)


def run(case: Case) -> Tensor:
    return _as_one(*route(case["logits"], case["active"], case["renormalise"]))


def run_reference(case: Case) -> Tensor:
    logits = case["logits"]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return _as_one(*reference.route(logits, case["active"], case["renormalise"]))


def _as_one(share_TK: Tensor, expert_TK: Tensor) -> Tensor:
    """[T, 2 K]: the suite compares one tensor."""
    return torch.cat([share_TK, expert_TK.to(share_TK.dtype)], dim=1)


def cases() -> Iterator[Case]:
    for rows, experts, active, renormalise in SHAPES:
        name = f"{rows}x{experts}-{active}{'-renormalised' if renormalise else ''}"
        yield _case(name, rows, experts, active, renormalise)
    yield _case("bf16", 40, 64, 8, True, torch.bfloat16)  # with many equals
    yield _case("float64", 40, 64, 8, True, torch.float64)
    for name, value in (("nan", torch.nan), ("infinity", torch.inf), ("forbidden", -torch.inf)):
        case = _case(name, 5, 16, 3, True)
        case["logits"][1, 4] = case["logits"][2, [9, 3]] = case["logits"][3] = value
        yield case
    case = _case("both-zeros", 5, 16, 3, False)
    case["logits"][:] = torch.tensor([-0.0, 0.0]).repeat(8)
    yield case
    case = _case("far-apart", 9, 32, 8, True)
    case["logits"].mul_(200)
    yield case
    case = _case("columns-of-a-wider-tensor", 9, 96, 4, True)
    case.arguments["logits"] = case["logits"][:, 16:80]
    yield case


def _case(
    name: str,
    rows: int,
    experts: int,
    active: int,
    renormalise: bool,
    dtype: torch.dtype = torch.float32,
) -> Case:
    random = torch.Generator().manual_seed(rows + experts)
    logits = torch.randn(rows, experts, generator=random, dtype=torch.float64).to(dtype)
    return Case(name, {"logits": logits, "active": active, "renormalise": renormalise}, by_row=("logits",))
