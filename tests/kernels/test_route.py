"""route beyond the contract: the way of rows to their experts and back has the bits of the reference."""

import pytest
import torch

from headrace import kernels
from headrace.kernels.route import gather, group, reference, route, scatter_add

LEVELS = kernels.available()
SHAPES = ((1, 4, 2, 5), (3, 128, 8, 64), (40, 8, 8, 33), (300, 16, 1, 16), (0, 4, 2, 8))
"""Rows, experts, active experts, width."""


@pytest.fixture(params=LEVELS)
def level(request):
    with kernels.forced(request.param):
        yield request.param


@pytest.mark.parametrize(("rows", "experts", "active", "width"), SHAPES)
def test_there_and_back(level, rows, experts, active, width):
    random = torch.Generator().manual_seed(rows)
    share_TK, expert_TK = route(torch.randn(rows, experts, generator=random), active, True)
    x_TD = torch.randn(rows, 2 * width, generator=random)[:, :width]  # rows lie apart
    got = group(share_TK, expert_TK, experts)
    counts, row_A, share_A = reference.group(share_TK, expert_TK, experts)
    assert got.counts == counts and torch.equal(got.row_A, row_A) and torch.equal(got.share_A, share_A)
    x_AD = gather(x_TD, row_A)
    assert torch.equal(x_AD, x_TD[row_A])
    memory = torch.randn(rows + 2, width, generator=random)
    want, start = memory.clone(), 0
    for count in counts:
        scatter_add(memory[1:-1], x_AD[start : start + count], row_A, share_A, start)
        reference.scatter_add(want[1:-1], x_AD[start : start + count], row_A, share_A, start)
        start += count
    assert torch.equal(memory, want)


def test_equals_go_to_the_lower_experts(level):
    _, expert_TK = route(torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0], [2.0] * 5]), 3, False)
    assert expert_TK.tolist() == [[1, 3, 0], [0, 1, 2]]


def test_more_active_experts_than_there_are_is_an_error(level):
    for active in (0, 5):
        with pytest.raises(ValueError, match="active"):
            route(torch.zeros(2, 4), active, True)


@pytest.mark.skipif(kernels.isa() == kernels.REFERENCE, reason="the native module checks")
def test_arguments_that_do_not_fit_are_refused():
    shares, ids = torch.ones(2, 1), torch.tensor([[0], [4]])
    with pytest.raises(ValueError, match="expert 4 of 4"):
        group(shares, ids, 4)
    for rows in ([0, 2], [-1, 0]):
        with pytest.raises(ValueError, match="of 2"):
            gather(torch.zeros(2, 3), torch.tensor(rows))
        with pytest.raises(ValueError, match="of 2"):
            scatter_add(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor(rows), torch.ones(2))
    with pytest.raises(ValueError, match="ascend"):
        scatter_add(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([1, 1]), torch.ones(2))
    for first in (-1, 1, 2, 3):
        with pytest.raises(ValueError, match="assignments"):
            scatter_add(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 1]), torch.ones(2), first)
    with pytest.raises(ValueError, match="y must"):
        scatter_add(torch.zeros(2, 3), torch.zeros(2, 4), torch.tensor([0, 1]), torch.ones(2))
