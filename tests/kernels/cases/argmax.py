"""Inputs for the contract suite: argmax."""

from collections.abc import Iterator

import torch

from headrace.kernels.argmax import argmax, reference
from tests.kernels.case import Case

SAME_BITS_ON_EVERY_LEVEL = True
SHAPES = ((5, 1), (5, 7), (5, 16), (5, 17), (5, 4096), (5, 4097), (5, 20000), (1, 1), (1, 4097), (0, 17))
"""Rows, width."""


def run(case: Case) -> torch.Tensor:
    return argmax(case["x"])


def run_reference(case: Case) -> torch.Tensor:
    return reference.argmax(case["x"])


def cases() -> Iterator[Case]:
    for rows, width in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):  # bfloat16 has many equals
            yield _case(f"{rows}x{width}-{dtype}".replace("torch.", ""), rows, width, dtype)
    yield _case("float64", 5, 100, torch.float64)
    yield _case("float16", 5, 100, torch.float16)
    yield _edited("constant", lambda x: x.fill_(2.5))
    yield _edited("nothing-allowed", lambda x: x.fill_(-torch.inf))
    yield _edited("one-token-left", lambda x: x.fill_(-torch.inf).index_fill_(1, torch.tensor([9000]), -3.0))
    yield _edited("both-zeros", lambda x: x.fill_(-1.0), _put(-0.0, 70), _put(0.0, 5000))
    yield _edited("nan", _put(torch.nan, 9001))
    yield _edited("nan-in-the-rest", _put(torch.nan, 10000))
    yield _edited("negative-nan", _put(-torch.tensor(torch.nan), 33))
    yield _edited("several-nan", _put(torch.nan, 8000, 5000, 8001))
    yield _edited("nan-and-infinity", _put(torch.inf, 3, 9000), _put(torch.nan, 4444))
    yield _edited("infinity", _put(torch.inf, 3, 9000))
    case = _case("columns-of-a-wider-tensor", 9, 96, torch.float32)
    case.arguments["x"] = case["x"][:, 16:80]
    yield case
    case = _case("every-second-column", 9, 96, torch.float32)
    case.arguments["x"] = case["x"][:, ::2]
    yield case


def _case(name: str, rows: int, width: int, dtype: torch.dtype) -> Case:
    random = torch.Generator().manual_seed(rows + width)
    x = torch.randn(rows, width, generator=random, dtype=torch.float64).to(dtype)
    return Case(name, {"x": x}, by_row=("x",))


def _put(value: float | torch.Tensor, *at: int):
    def edit(x: torch.Tensor) -> None:
        x[:, list(at)] = value

    return edit


def _edited(name: str, *edits) -> Case:
    case = _case(name, 3, 10001, torch.float32)
    for edit in edits:
        edit(case["x"])
    return case
