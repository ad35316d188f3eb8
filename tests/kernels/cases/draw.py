"""Inputs for the contract suite: draw and its filters. `apply` says which.

Results are what a filter makes of the row with every option, [options, V], and the token that is drawn by every u.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from headrace.kernels import draw
from headrace.kernels.draw import reference
from tests.kernels.case import Case

SAME_BITS_ON_EVERY_LEVEL = True
WIDTHS = (1, 2, 15, 63, 64, 65, 1000, 20011)
FILTERS = {
    "top_k": (1, 2, 7, 50, 400, 19000),
    "top_p": (1e-9, 0.1, 0.5, 0.95, 0.999),
    "min_p": (0.0, -0.7, -3.0, -30.0),
}
US = (0.0, 0.0123, 0.2871, 0.5127, 0.7741, 0.9313, (2**53 - 1) / 2**53)
"""Not where the probabilities of equals end: there rounding decides."""
Edit = Callable[[Tensor], object]


def run(case: Case) -> Tensor:
    return _run(draw, case)


def run_reference(case: Case) -> Tensor:
    return _run(reference, case)


def _run(module, case: Case) -> Tensor:
    x, name = case["x"], case["apply"]
    if name == "draw":
        return torch.tensor([module.draw(x, u) for u in US])
    return torch.stack([getattr(module, name)(x.clone(), option) for option in FILTERS[name]])


def cases() -> Iterator[Case]:
    for width in WIDTHS:
        yield from _cases(f"{width}", _logits(width, 1.0))
        yield from _cases(f"{width}-peaked", _logits(width, 6.0))
    for name, edit in EDITS.items():
        for width in (40, 5003):
            x = _logits(width, 3.0)
            edit(x)
            yield from _cases(f"{name}-{width}", x)
    yield from _cases("float64", _logits(100, 3.0).double())
    yield Case("draw-bf16", {"x": _logits(100, 3.0).bfloat16(), "apply": "draw"})


def _put(value: float, *at: int) -> Edit:
    return lambda x: x.index_fill_(0, torch.tensor(at), value)


def _both(first: Edit, second: Edit) -> Edit:
    return lambda x: (first(x), second(x))


EDITS: dict[str, Edit] = {
    "constant": lambda x: x.fill_(-7.25),
    "two-values": lambda x: x.copy_((x > 1).float()),
    "coarse": lambda x: x.copy_((x * 2).round() / 2),  # many equals
    "both-zeros": lambda x: x.copy_((x * 0.1).round() * 0.0),
    "every-third-allowed": lambda x: x.masked_fill_(torch.arange(len(x)) % 3 > 0, -torch.inf),
    "nothing-allowed": lambda x: x.fill_(-torch.inf),
    "one-token-left": _both(lambda x: x.fill_(-torch.inf), _put(-3.0, 21)),
    "three-tokens-left": _both(lambda x: x.fill_(-torch.inf), _put(-3.0, 5, 21, 39)),
    "one-likely": _put(15.0, 17),
    "large": lambda x: x.mul_(1e4),
    "tiny": lambda x: x.mul_(1e-30),
    "infinity": _put(torch.inf, 11, 30),
    "nan": _put(torch.nan, 11),
    "negative-nan": lambda x: x.__setitem__(11, -torch.tensor(torch.nan)),
    "many-nan": lambda x: x.__setitem__(slice(3, 30), torch.nan),
    "nan-and-infinity": _both(_put(torch.inf, 11), _put(torch.nan, 30)),
}


def _logits(width: int, scale: float) -> Tensor:
    random = torch.Generator().manual_seed(width)
    return torch.randn(width, generator=random, dtype=torch.float64).mul(scale).float()


def _cases(name: str, x: Tensor) -> Iterator[Case]:
    for operation in (*FILTERS, "draw"):
        yield Case(f"{operation}-{name}", {"x": x, "apply": operation})
