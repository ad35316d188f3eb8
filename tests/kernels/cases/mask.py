"""Inputs for the contract suite: mask."""

from collections.abc import Iterator

import torch

from headrace.kernels.mask import mask, reference
from tests.kernels.case import Case

SAME_BITS_ON_EVERY_LEVEL = True
SIZES = (0, 1, 7, 8, 9, 15, 16, 17, 25, 8191, 8192, 8193, 20011)


def run(case: Case) -> torch.Tensor:
    return mask(case["x"], case["bits"])


def run_reference(case: Case) -> torch.Tensor:
    return reference.mask(case["x"], case["bits"])


def cases() -> Iterator[Case]:
    for size in SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            yield _case(f"{size}-{dtype}".replace("torch.", ""), size, dtype)
    yield _case("float64", 100, torch.float64)
    yield _case("float16", 100, torch.float16)
    yield _case("more-bits-than-logits", 100, torch.float32, spare=5)
    for name, value in (("all", 255), ("none", 0)):
        case = _case(name, 100, torch.float32)
        case["bits"].fill_(value)
        yield case
    odd = _case("forbidden-whatever-it-was", 64, torch.float32)
    odd["x"][::3], odd["x"][1::3] = torch.nan, torch.inf
    yield odd
    apart = _case("every-second-value", 100, torch.float32)
    apart.arguments["x"] = torch.randn(200)[::2]
    yield apart


def _case(name: str, size: int, dtype: torch.dtype, spare: int = 0) -> Case:
    """A third of the mask's bytes are all ones, a third all zeros, in runs."""
    random = torch.Generator().manual_seed(size)
    count = (size + 7) // 8 + spare
    bits = torch.randint(0, 256, (count,), generator=random, dtype=torch.uint8)
    runs = torch.randint(0, 3, (count // 5 + 1,), generator=random).repeat_interleave(5)[:count]
    bits[runs == 1], bits[runs == 2] = 0, 255
    x = torch.randn(size, generator=random, dtype=torch.float64).to(dtype)
    return Case(name, {"x": x, "bits": bits})
