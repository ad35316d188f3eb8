"""attention and merge against softmax written out, one query and one key at a time, in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headrace.kernels import attention
from headrace.kernels.attention import State
from headrace.kernels.attention.reference import BLOCK

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}


def naive(
    q_TNH: Tensor,
    k_LGH: Tensor,
    v_LGH: Tensor,
    positions: list[int],
    start: int,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """The package's pseudo-code, line by line."""
    q, k, v = q_TNH.double(), k_LGH.double(), v_LGH.double()
    T, N, H = q.shape
    out, lse = torch.zeros(T, N, H, dtype=torch.float64), torch.full((T, N), -math.inf, dtype=torch.float64)
    for t, position in enumerate(positions):
        for n in range(N):
            g = n // (N // k.shape[1])
            seen = [
                i
                for i in range(len(k))
                if start + i <= position and (window is None or start + i > position - window)
            ]
            if not seen:
                continue
            scores = [scale * float(q[t, n] @ k[i, g]) for i in seen]
            top = max(scores)
            total = math.fsum(math.exp(s - top) for s in scores)
            lse[t, n] = top + math.log(total)
            for i, score in zip(seen, scores, strict=True):
                out[t, n] += math.exp(score - lse[t, n]) * v[i, g]
    return out, lse


@st.composite
def calls(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, list[int], int, float, int | None]:
    """Spans and stored runs that may lie before, around and behind each other."""
    heads, each, size = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 4, 7]))
    length, start = draw(st.integers(1, 14)), draw(st.integers(0, 9))
    positions = sorted(draw(st.sets(st.integers(0, 26), min_size=1, max_size=6)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    q, k, v = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in [(len(positions), heads * each, size), (length, heads, size), (length, heads, size)]
    )
    return (
        q,
        k,
        v,
        positions,
        start,
        draw(st.sampled_from([0.5, 1.0, 4.0])),
        draw(st.none() | st.integers(1, 12)),
    )


def attend(
    q: Tensor, k: Tensor, v: Tensor, positions: list[int], start: int, scale: float, window: int | None
) -> State:
    return attention.attend(q, k, v, torch.tensor(positions), start, scale, window)


def close(state: State, expected: tuple[Tensor, Tensor], dtype: torch.dtype = torch.float64) -> None:
    tolerance = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(state.out_TNH.double(), expected[0], **tolerance)
    torch.testing.assert_close(state.lse_TN.double(), expected[1], **tolerance)


@QUICK
@given(calls())
def test_equals_softmax_written_out(call: tuple) -> None:
    close(attend(*call), naive(*call))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    """Half precision loses bits on the way in and out only: sums are wide, and lse is never half."""
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(5, 4, 16).to(dtype),
        torch.randn(40, 2, 16).to(dtype),
        torch.randn(40, 2, 16).to(dtype),
    )
    call = (q, k, v, list(range(35, 40)), 0, 0.25, 30)
    state = attend(*call)
    assert state.out_TNH.dtype == dtype
    assert state.lse_TN.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(state, naive(*call), dtype)
    torch.testing.assert_close(state.lse_TN.double(), naive(*call)[1], atol=1e-5, rtol=1e-5)


def test_a_long_chunk_is_the_same_as_its_pieces() -> None:
    """Queries are taken in blocks; where the blocks begin makes no difference."""
    torch.manual_seed(1)
    count = BLOCK + 37
    q, k, v = (torch.randn(count, heads, 4, dtype=torch.float64) for heads in (4, 2, 2))
    positions = list(range(count))
    whole = attend(q, k, v, positions, 0, 0.5, 100)
    pieces = [
        attend(q[a:b], k, v, positions[a:b], 0, 0.5, 100)
        for a, b in [(0, 1), (1, 50), (50, 290), (290, count)]
    ]
    torch.testing.assert_close(whole.out_TNH, torch.cat([p.out_TNH for p in pieces]), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(whole.lse_TN, torch.cat([p.lse_TN for p in pieces]), atol=1e-12, rtol=1e-12)
    rows = [0, 1, BLOCK - 1, BLOCK, count - 1]
    close(State(whole.out_TNH[rows], whole.lse_TN[rows]), naive(q[rows], k, v, rows, 0, 0.5, 100))


@pytest.mark.parametrize(
    ("positions", "start", "length", "window"),
    [([3, 4], 5, 4, None), ([20], 0, 5, 4), ([2, 30], 3, 4, 6), ([7], 0, 0, None)],
    ids=["all-ahead", "all-behind", "both", "nothing-stored"],
)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_query_that_sees_nothing(
    positions: list[int], start: int, length: int, window: int | None, dtype: torch.dtype
) -> None:
    q, k = torch.ones(len(positions), 2, 4, dtype=dtype), torch.ones(length, 2, 4, dtype=dtype)
    state = attend(q, k, k, positions, start, 1.0, window)
    assert bool((state.out_TNH == 0).all()) and bool((state.lse_TN == -math.inf).all())
    both = attention.merge([state, state])
    assert bool((both.out_TNH == 0).all()) and bool((both.lse_TN == -math.inf).all())
    seen = State(torch.full_like(state.out_TNH, 2.0), torch.zeros_like(state.lse_TN))
    for states in ([seen, state], [state, seen, state]):
        merged = attention.merge(states)
        assert torch.equal(merged.out_TNH, seen.out_TNH) and torch.equal(merged.lse_TN, seen.lse_TN)


@QUICK
@given(calls(), st.data())
def test_any_split_of_the_keys_merges_to_the_whole(call: tuple, data: st.DataObject) -> None:
    """In any number of parts, in any order and any grouping; queries may see nothing of a part."""
    q, k, v, positions, start, scale, window = call
    cuts = sorted(data.draw(st.sets(st.integers(1, len(k) - 1), max_size=5)) if len(k) > 1 else [])
    parts = [
        attend(q, k[a:b], v[a:b], positions, start + a, scale, window)
        for a, b in zip([0, *cuts], [*cuts, len(k)], strict=True)
    ]
    parts = data.draw(st.permutations(parts))
    expected = naive(*call)
    close(attention.merge(parts), expected)
    split = data.draw(st.integers(0, len(parts)))
    nested = [attention.merge(group) for group in (parts[:split], parts[split:]) if group]
    close(attention.merge(nested), expected)


def test_one_state_is_its_own_merge() -> None:
    state = State(torch.randn(2, 3, 4), torch.randn(2, 3))
    assert attention.merge([state]) is state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_large_scores_neither_overflow_nor_vanish(dtype: torch.dtype) -> None:
    q, k = torch.full((2, 1, 4), 100.0, dtype=dtype), torch.full((6, 1, 4), 100.0, dtype=dtype)
    k[3] = 101.0
    v = torch.arange(6, dtype=dtype)[:, None, None].expand(6, 1, 4).contiguous()
    state = attend(q, k, v, [5, 2], 0, 1.0, None)
    assert state.out_TNH[:, 0, 0].tolist() == pytest.approx([3.0, 1.0], rel=0.01)
    low = attend(-q, k, v, [5, 2], 0, 1.0, None)
    assert bool(low.out_TNH.isfinite().all()) and bool(low.lse_TN.isfinite().all())
    merged = attention.merge([state, State(torch.full_like(state.out_TNH, 9.0), state.lse_TN - 1000)])
    assert torch.equal(merged.out_TNH, state.out_TNH)


def test_arguments_are_left_as_they_are() -> None:
    tensors = [torch.randn(3, 2, 4, dtype=torch.float64) for _ in range(3)]
    before = [tensor.clone() for tensor in tensors]
    state = attend(*tensors, [0, 1, 2], 0, 0.5, 2)
    kept = [state.out_TNH.clone(), state.lse_TN.clone()]
    attention.merge([state, state])
    assert all(map(torch.equal, tensors, before))
    assert torch.equal(state.out_TNH, kept[0]) and torch.equal(state.lse_TN, kept[1])
