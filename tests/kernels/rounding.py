"""What every format that rounds weights is tried with."""

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

SIZES = (  # outputs, inputs, group
    (1, 1, 32),
    (3, 33, 32),
    (64, 64, 64),
    (70, 130, 64),
    (130, 200, 128),
    (65, 96, 96),
    (17, 257, 1024),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def no_numbers_that_pass(
    rounding: Callable[[Tensor], Any],
) -> list[tuple[tuple[int, int], float, torch.dtype]]:
    """Place, value and dtype of each NaN and infinity that `rounding` does not refuse with the line for users."""
    values = (float("nan"), float("inf"), float("-inf"))
    cases = product([(0, 0), (31, 40), (69, 129)], values, DTYPES)
    return [case for case in cases if not _refused(rounding, *case)]


def _refused(
    rounding: Callable[[Tensor], Any], place: tuple[int, int], value: float, dtype: torch.dtype
) -> bool:
    weight_OI = torch.randn(70, 130).to(dtype)
    weight_OI[place] = value
    try:
        rounding(weight_OI)
    except ValueError as error:
        return re.search("infinite or not a number: .* download it again", str(error)) is not None
    return False
