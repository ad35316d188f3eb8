"""attention: queries of one sequence over one run of its stored keys and values; results that merge.

    for each query t, head n:             # T queries, N query heads, G kv heads, H head size, L stored tokens
        g = n // (N / G)
        s_l = scale * (q_tn . k_lg)       for every l with  position_l <= position_t,  and of these
                                              position_l > position_t - window  or  position_l < sink
        lse = log(sum_l exp(s_l))
        out = sum_l exp(s_l - lse) * v_lg

A *State* (out, lse) is attention over part of the keys. Parts merge exactly, in any grouping:
softmax over a union is the average of the parts' results weighted by exp(lse).
A query that sees no key has out = 0 and lse = -inf.

Paper   https://arxiv.org/abs/2501.01005 (FlashInfer, attention states); https://arxiv.org/abs/2402.05099 (Hydragen)
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from headrace.kernels.attention import reference


class State(NamedTuple):
    """Attention over some keys."""

    out_TNH: Tensor
    """In the queries' dtype."""
    lse_TN: Tensor
    """Log of the sum of exponentials; float32, float64 for float64 queries."""


class Queries(NamedTuple):
    """Rotated queries and what they may see: positions in (own - window, own], and those before the sink's end."""

    q_TNH: Tensor
    positions_T: Tensor
    """int64."""
    scale: float
    """Multiplies q . k."""
    window: int | None
    """None sees all."""
    sink: int = 0
    """First positions that are seen beside a window."""


def attend(
    q_TNH: Tensor,
    k_LGH: Tensor,
    v_LGH: Tensor,
    positions_T: Tensor,
    start: int,
    scale: float,
    window: int | None,
    sink: int = 0,
) -> State:
    """Attention of T queries at `positions_T` (ascending) over keys at positions [start, start + L)."""
    return State(*reference.attend(q_TNH, k_LGH, v_LGH, positions_T, start, scale, window, sink))


def merge(states: list[State]) -> State:
    """Attention over the union of the states' keys. The sets of keys must not overlap."""
    return states[0] if len(states) == 1 else State(*reference.merge(states))
