"""draw beyond the contract: what survives against plain Python, the law of the draw, and the roundings allowed."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headrace import kernels
from headrace.kernels import draw
from headrace.kernels.draw import reference
from headrace.sample.draw import uniform

LEVELS = kernels.available()
QUICK = settings(max_examples=60, deadline=None, derandomize=True)
each_level = pytest.mark.parametrize("level", LEVELS)
VOCAB = 128256
"""Of Llama 3."""


def vocabulary(scale: float, seed: int = 0) -> Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


@each_level
@QUICK
@given(
    row=st.lists(st.integers(-24, 24).map(lambda i: i / 8) | st.just(-math.inf), min_size=1, max_size=200),
    k=st.integers(1, 210),
    p=st.floats(0.01, 0.999),
)
def test_what_survives(level: str, row: list[float], k: int, p: float) -> None:
    """top_k: fewer than k are larger. top_p: what is larger, or equal with a lower id, has less than p."""
    x = torch.tensor(row)
    with kernels.forced(level):
        by_count, by_share = draw.top_k(x.clone(), k), draw.top_p(x.clone(), p)
    assert by_count.tolist() == [y if sum(z > y for z in row) < k else -math.inf for y in row]
    if max(row) == -math.inf:
        assert by_share.tolist() == row
        return
    shares = [math.exp(y - max(row)) for y in row]
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    before = [math.fsum(shares[j] for j in order[:rank]) / math.fsum(shares) for rank in range(len(row))]
    if any(abs(share - p) < 1e-6 for share in before):
        return  # rounding decides
    kept = {token for rank, token in enumerate(order) if before[rank] < p}
    assert by_share.tolist() == [y if token in kept else -math.inf for token, y in enumerate(row)]


@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
def test_the_nucleus_of_a_whole_vocabulary_is_minimal_up_to_rounding(scale: float) -> None:
    x = vocabulary(scale)
    order = x.sort(descending=True, stable=True).indices
    shares = torch.softmax(x.double(), -1)[order].cumsum(-1)
    for level, p in product(LEVELS, (0.05, 0.5, 0.95, 0.9999)):
        with kernels.forced(level):
            kept = draw.top_p(x.clone(), p).isfinite()
        count = int(kept.sum())
        assert bool(kept[order[:count]].all()), f"{level}, {p}: the largest stay"
        fewer = float(shares[count - 2]) if count > 1 else 0.0
        assert fewer < p + 1e-6 and float(shares[count - 1]) > p - 1e-6, f"{level}, {p}"


def test_top_k_of_a_whole_vocabulary() -> None:
    x = vocabulary(3.0).bfloat16().float()  # with many equals
    for k in (1, 50, 2004, 2005, 100_000):
        want = reference.top_k(x, k)
        for level in LEVELS:
            with kernels.forced(level):
                assert torch.equal(draw.top_k(x.clone(), k), want), f"{level}, {k}"


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_a_draw_is_where_the_cumulative_probability_passes_u(scale: float) -> None:
    x = vocabulary(scale)
    x[1000:50_000] = -torch.inf
    cumulative = torch.softmax(x.double(), -1).cumsum(-1)
    for level, position in product(LEVELS, range(30)):
        u = uniform(3, position, "token")
        with kernels.forced(level):
            token = draw.draw(x, u)
        assert float(x[token]) > -math.inf, f"{level}, {u}"
        before = float(cumulative[token - 1]) if token else 0.0
        assert before - 1e-6 < u < float(cumulative[token]) + 1e-6, f"{level}, {u}"


@each_level
def test_draws_follow_the_law(level: str) -> None:
    """Chi-square over 130 tokens, some of them forbidden, with fixed seeds; another temperature would be noticed."""
    count = 8_000
    x = torch.randn(130, generator=torch.Generator().manual_seed(1)) * 1.5
    x[::7] = -torch.inf
    law = torch.softmax(x.double(), -1)
    possible = law > 0

    def distance(logits: Tensor) -> float:
        with kernels.forced(level):
            drawn = torch.tensor([draw.draw(logits, uniform(11, i, "token")) for i in range(count)])
        counts = torch.bincount(drawn, minlength=len(x)).double()
        assert counts[~possible].sum() == 0
        expected = law[possible] * count
        freedom = len(expected) - 1
        statistic = ((counts[possible] - expected) ** 2 / expected).sum().item()
        return (statistic - freedom) / math.sqrt(2 * freedom)

    assert abs(distance(x)) < 5
    assert distance(x / 1.1) > 5


@each_level
def test_the_last_and_the_first_allowed_token(level: str) -> None:
    x = torch.full((1000,), -torch.inf)
    x[[70, 300, 931]] = torch.tensor([0.0, -2.0, -1.0])
    with kernels.forced(level):
        assert draw.draw(x, 0.0) == 70 and draw.draw(x, (2**53 - 1) / 2**53) == 931


def test_nothing_is_written_outside_the_row() -> None:
    if len(LEVELS) == 1:
        pytest.skip("no native module")
    for width in (1, 15, 63, 64, 65, 4097):
        memory = torch.full((width + 64,), 7.0)
        row = memory[32 : 32 + width]
        row.copy_(torch.arange(width))
        draw.min_p(draw.top_p(draw.top_k(row, 9), 0.5), -0.1)
        assert bool((memory[:32] == 7).all() and (memory[32 + width :] == 7).all())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("draw", (torch.zeros(3), 1.0)),
        ("draw", (torch.zeros(3), -0.1)),
        ("draw", (torch.zeros(2, 3), 0.5)),
        ("draw", (torch.zeros(0), 0.5)),
        ("draw", (torch.zeros(3).double(), 0.5)),
        ("draw_top_k", (torch.zeros(3), 0)),
        ("draw_top_p", (torch.zeros(3), 0.0)),
        ("draw_top_p", (torch.zeros(3), 1.0)),
        ("draw_min_p", (torch.zeros(3), 0.1)),
    ],
)
def test_arguments_that_do_not_fit_are_refused(name: str, arguments: tuple[object, ...]) -> None:
    native = kernels.native(name)
    if native is None:
        pytest.skip("no native module")
    with pytest.raises(ValueError):
        native(*arguments)
