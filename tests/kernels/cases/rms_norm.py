"""Inputs for the contract suite: rms_norm."""

from collections.abc import Iterator

import torch

from headrace.kernels.rms_norm import reference, rms_norm
from tests.kernels.case import Case

SAME_BITS_ON_EVERY_LEVEL = True
SHAPES = ((5, 1), (5, 7), (5, 16), (5, 64), (5, 65), (5, 2047), (0, 65), (1, 7), (1, 130), (513, 2047))
"""Rows, width."""


def run(case: Case) -> torch.Tensor:
    return rms_norm(case["x"], case["weight"], case["eps"], weight_offset=case["weight_offset"])


def run_reference(case: Case) -> torch.Tensor:
    return reference.rms_norm(case["x"], case["weight"], case["eps"], case["weight_offset"])


def cases() -> Iterator[Case]:
    for rows, width in SHAPES:
        yield _case(f"{rows}x{width}", (rows, width), torch.float32)
        yield _case(f"{rows}x{width}-bf16", (rows, width), torch.bfloat16)
    yield _case("three-axes", (3, 5, 40), torch.float32)
    yield _case("one-axis", (40,), torch.float32)
    yield _case("gemma", (5, 100), torch.bfloat16, weight_offset=1.0)
    yield _case("large-eps", (5, 100), torch.float32, eps=0.5)
    yield _case("float64", (5, 100), torch.float64)
    yield _case("float16", (5, 100), torch.float16)
    yield _strided("columns-of-a-wider-tensor")
    yield _extreme("huge-and-tiny-rows", torch.float32)
    yield _extreme("huge-and-tiny-rows-bf16", torch.bfloat16)


def _case(name: str, shape: tuple[int, ...], dtype: torch.dtype, eps: float = 1e-5, **more: float) -> Case:
    random = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)
    weight = torch.randn(shape[-1], generator=random, dtype=torch.float64).to(dtype)
    arguments = {"x": x, "weight": weight, "eps": eps, "weight_offset": 0.0, **more}
    return Case(name, arguments, by_row=("x",) if len(shape) == 2 else ())


def _strided(name: str) -> Case:
    case = _case(name, (9, 96), torch.float32)
    case.arguments["x"] = case["x"][:, 16:80]
    case.arguments["weight"] = case["weight"][:64]
    return case


def _extreme(name: str, dtype: torch.dtype) -> Case:
    """Rows whose squares are near the ends of float32, a row of zeros, and rows with a NaN or an infinity."""
    case = _case(name, (6, 70), dtype)
    scales = torch.tensor([1e17, 1e-19, 0.0, 1.0, 1.0, 1e-38])[:, None].to(dtype)
    case.arguments["x"] = case["x"] * scales
    case.arguments["x"][3, 69] = torch.nan
    case.arguments["x"][4, 1] = torch.inf
    return case
