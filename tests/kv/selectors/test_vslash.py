"""vslash: columns and diagonals are found where they are, and lines become the pages that they cross."""

from __future__ import annotations

import torch

from headrace.kernels.attention import Queries
from headrace.kv.selection import RowSet, Selecting
from headrace.kv.selectors import SLOT
from headrace.kv.selectors.vslash import attention_of, by_page, diagonals

SIZE, LENGTH = 4, 72


class Keys:
    """A codec double: these keys."""

    def __init__(self, k_LGH: torch.Tensor) -> None:
        self._k_LGH = k_LGH

    def read(self, *arguments: object) -> tuple[torch.Tensor, None]:
        return self._k_LGH[: arguments[-1]], None


def test_attention_is_that_of_the_last_rows() -> None:
    random = torch.Generator().manual_seed(0)
    q_TNH = torch.randn(5, 4, 8, generator=random, dtype=torch.float64)
    k_LGH = torch.randn(20, 2, 8, generator=random, dtype=torch.float64)
    got_GTL = attention_of(Queries(q_TNH, torch.arange(15, 20), 0.3, None), k_LGH)
    for g in range(2):
        for t in range(5):
            heads = [(0.3 * k_LGH[: 16 + t, g] @ q_TNH[t, n]).softmax(0) for n in (2 * g, 2 * g + 1)]
            torch.testing.assert_close(got_GTL[g, t, : 16 + t], sum(heads) / 2)
            assert (got_GTL[g, t, 16 + t :] == 0).all()


def test_diagonals_are_sums_at_a_distance() -> None:
    weights_GTL = torch.rand(2, 5, 20).tril(15)
    got_GL = diagonals(weights_GTL)
    for back in range(20):
        places = [(t, 15 + t - back) for t in range(5) if 15 + t - back >= 0]
        torch.testing.assert_close(got_GL[:, back], sum(weights_GTL[:, t, at] for t, at in places))


def test_sums_by_page() -> None:
    assert by_page(torch.arange(6.0)[None], 4, 3).tolist() == [[6, 9, 0]]


def test_a_column_and_a_diagonal_are_read() -> None:
    """Kv head 0 looks at position 21 from everywhere, kv head 1 always 17 back."""
    H = 2 * LENGTH
    k_LGH = torch.zeros(LENGTH, 2, H)
    k_LGH[21, 0, 0] = 1
    k_LGH[torch.arange(LENGTH), 1, torch.arange(LENGTH)] = 1
    q_TNH = torch.zeros(LENGTH, 2, H)
    q_TNH[:, 0, 0] = 30
    q_TNH[torch.arange(17, LENGTH), 1, torch.arange(LENGTH - 17)] = 30
    live = SLOT.make("vslash:vertical=4,slash=4,sink=1,recent=1,rows=8,spared=8").start(None, 0, Keys(k_LGH))
    starts = range(32, 64, 8)
    sets = tuple(RowSet(i * 8, i * 8 + 8, 0, at + 8, (at + 8) // SIZE, 1) for i, at in enumerate(starts))
    selecting = Selecting(
        SIZE, torch.arange(0), sets, torch.arange(32, 64), torch.arange(18)[None], (LENGTH,)
    )
    queries = Queries(q_TNH, torch.arange(LENGTH), 1.0, None)
    mask_GCB = live.select(torch.empty(0), 0, queries, selecting)
    assert mask_GCB.shape == (2, 4, 18)
    for i, at in enumerate(starts):
        assert mask_GCB[0, i, 21 // SIZE]
        assert all(mask_GCB[1, i, (p - 17) // SIZE] for p in range(at, at + 8))
        assert mask_GCB[:, i, 0].all() and mask_GCB[:, i, at // SIZE : at // SIZE + 2].all(), (
            "sink, own pages"
        )
        assert not mask_GCB[:, i, (at + 8) // SIZE :].any(), "what comes later"
        assert mask_GCB[1, i].sum() < 10
