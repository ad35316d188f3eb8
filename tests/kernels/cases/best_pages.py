"""Inputs for the contract suite: best_pages."""

from collections.abc import Iterator

import torch

from headrace.kernels.best_pages import best_pages, reference
from tests.kernels.case import Case

SAME_BITS_ON_EVERY_LEVEL = True
ARGUMENTS = ("scores", "kv_heads", "leading", "first", "pages", "kept")


def run(case: Case) -> torch.Tensor:
    return best_pages(*(case[name] for name in ARGUMENTS)).transpose(0, 1).long()


def run_reference(case: Case) -> torch.Tensor:
    return reference.best_pages(*(case[name] for name in ARGUMENTS)).transpose(0, 1).long()


def cases() -> Iterator[Case]:
    yield _case("one-row", 1, heads=8, kv_heads=2, pages=70)
    yield _case("no-rows", 0, heads=4, kv_heads=1, pages=5)
    yield _case("rows-of-any-length", 7, heads=6, kv_heads=2, pages=133, leading=2)
    yield _case("equal-scores", 5, heads=4, kv_heads=4, pages=37, levels=3)
    yield _case("all-equal", 3, heads=4, kv_heads=2, pages=37, levels=1)
    yield _case("all-lead", 3, heads=2, kv_heads=1, pages=20, leading=50)
    yield _case("one-page", 2, heads=2, kv_heads=2, pages=1)
    yield _case("float64", 4, heads=4, kv_heads=2, pages=21, dtype=torch.float64)
    yield _case("large-and-small", 4, heads=4, kv_heads=2, pages=64, scale=1e30)


def _case(
    name: str,
    rows: int,
    *,
    heads: int,
    kv_heads: int,
    pages: int,
    leading: int = 1,
    levels: int = 0,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """levels: how many different scores there are; 0 for no limit."""
    random = torch.Generator().manual_seed(rows + pages)
    scores = scale * torch.randn(rows, heads, pages, generator=random, dtype=dtype)
    if levels:
        scores = scores.abs().mul(levels).clamp_max(levels - 1).floor()
    listed = torch.randint(1, pages + 1, (rows,), generator=random)
    first = (listed - torch.randint(0, 5, (rows,), generator=random)).clamp_min(0)
    anyway = listed - (first - leading).clamp_min(0).clamp_max(listed)
    kept = anyway + ((listed - anyway) * torch.rand(rows, generator=random)).long()
    scores.masked_fill_(torch.arange(pages) >= listed[:, None, None], -torch.inf)
    arguments = {
        "scores": scores,
        "kv_heads": kv_heads,
        "leading": leading,
        "first": first,
        "pages": listed,
        "kept": kept,
    }
    return Case(name, arguments, by_row=("scores", "first", "pages", "kept"))
