"""landmarks: a box bounds what its page's keys can score, and the pages with the best bounds are read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kernels.attention import Queries
from headrace.kv.codecs import SLOT as CODECS
from headrace.kv.groups import GroupSpec, Member
from headrace.kv.selection import RowSet, Selecting
from headrace.kv.selectors import SLOT
from headrace.kv.selectors.landmarks import upwards

GROUP = GroupSpec("all", (Member(3, (0, 1), 16),))
SIZE = 16


def store(spec: str, codec: str, k_LGH: torch.Tensor) -> tuple[object, torch.Tensor]:
    """A live selector that has been shown the keys, and their pages."""
    made, dtype = CODECS.make(codec), k_LGH.dtype
    selector = SLOT.make(spec)
    at = made.page_bytes(GROUP, SIZE, dtype)
    pages = -(-len(k_LGH) // SIZE)
    arena_PX = torch.full((pages, at + -(-selector.page_bytes(GROUP) // 64) * 64), 255, dtype=torch.uint8)
    live = made.start(GROUP, SIZE, dtype)
    live.write(arena_PX, 3, k_LGH, torch.zeros_like(k_LGH), torch.arange(len(k_LGH)))
    selection = selector.start(GROUP, at, live)
    selection.index(arena_PX, 3, torch.arange(len(k_LGH) // SIZE), SIZE)
    return selection, arena_PX


def asked(length: int, kept: int, rows: int = 1) -> Selecting:
    """The last rows of one sequence whose pages follow each other."""
    pages = -(-length // SIZE)
    table = torch.arange(pages)[None]
    sets = tuple(RowSet(r, r + 1, 0, length - rows + 1 + r, pages, kept) for r in range(rows))
    return Selecting(SIZE, torch.arange(0), sets, torch.arange(rows), table, (rows,))


def queries(q_TNH: torch.Tensor, length: int) -> Queries:
    return Queries(q_TNH, torch.arange(length - len(q_TNH), length), 0.25, None)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    seed=st.integers(0, 1 << 20),
    codec=st.sampled_from(["plain", "bf16", "int8"]),
    spread=st.floats(0.001, 100),
)
def test_no_key_scores_above_its_box(seed: int, codec: str, spread: float) -> None:
    random = torch.Generator().manual_seed(seed)
    k_LGH = torch.randn(4 * SIZE, 2, 16, generator=random) * spread
    k_LGH[:SIZE] = k_LGH[0]  # a box that is a point
    q_NH = torch.randn(4, 16, generator=random)
    live, arena_PX = store("landmarks", codec, k_LGH)
    stored_LGH, _ = (
        CODECS.make(codec).start(GROUP, SIZE, torch.float32).read(arena_PX, 3, torch.arange(4), 64)
    )
    high_PGH, low_PGH = live._stores[3].views(arena_PX)[:, :, 0].double().split(16, -1)
    for n in range(4):
        q_H, g = q_NH[n].double(), n // 2
        bound_P = (q_H.clamp_min(0) * high_PGH[:, g] + q_H.clamp_max(0) * low_PGH[:, g]).sum(-1)
        scores_PL = (stored_LGH[:, g].double() @ q_H).view(4, SIZE)
        assert (scores_PL <= bound_P[:, None] + 1e-9).all()


def test_rounding_outwards() -> None:
    x = torch.tensor([1.0, 1.00001, -1.00001, 0.0, -1e-30, 3.3e38], dtype=torch.float64)
    up = upwards(x)
    assert (up.double() >= x).all() and up.dtype == torch.bfloat16
    assert (up[:4].double() - x[:4]).max() <= 2**-7
    assert upwards(up.double()).equal(up)


@pytest.mark.parametrize("spec", ["landmarks:dense=0,sink=16,recent=1", "squeezed:sink=16,recent=1"])
@pytest.mark.parametrize("needle", [17, 100, 250])
def test_a_needle_is_read_and_so_are_the_first_and_the_last_page(spec: str, needle: int) -> None:
    """By the head that looks for it; the other takes other pages."""
    random = torch.Generator().manual_seed(needle)
    k_LGH = torch.randn(300, 2, 16, generator=random)
    q_TNH = torch.randn(1, 4, 16, generator=random)
    k_LGH[needle, 1] = 4 * q_TNH[0, 3]
    live, arena_PX = store(spec, "plain", k_LGH)
    mask_GCB = live.select(arena_PX, 3, queries(q_TNH, 300), asked(300, 5))
    assert mask_GCB.shape == (2, 1, 19) and mask_GCB.sum(-1).tolist() == [[5], [5]]
    assert mask_GCB[1, 0, needle // SIZE] and mask_GCB[..., [0, 18]].all()
    assert not mask_GCB[0].equal(mask_GCB[1])


def test_a_row_chooses_for_itself() -> None:
    """The same pages whatever rows and longer tables stand beside it; equal pages in the order of the text."""
    k_LGH = torch.randn(400, 2, 16, generator=torch.Generator().manual_seed(0))
    k_LGH[64:80] = k_LGH[48:64]
    q_TNH = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(1))
    live, arena_PX = store("landmarks:dense=0,sink=0,recent=1", "plain", k_LGH)
    whole = live.select(arena_PX, 3, queries(q_TNH, 200), asked(200, 7, rows=3))
    for row in range(3):
        own = live.select(arena_PX, 3, queries(q_TNH[row : row + 1], 198 + row), asked(198 + row, 7))
        assert own[:, 0].equal(whole[:, row])
    alike = torch.cat((k_LGH[:SIZE],) * 10)
    live, arena_PX = store("landmarks:dense=0,sink=0,recent=1", "plain", alike)
    first = live.select(arena_PX, 3, queries(q_TNH[:1], 160), asked(160, 4))
    assert first.nonzero()[:, 2].tolist() == [0, 1, 2, 9] * 2


def test_the_first_layers_read_everything() -> None:
    k_LGH = torch.randn(64, 2, 16)
    live, arena_PX = store("landmarks:dense=4", "plain", k_LGH)
    assert live.select(arena_PX, 3, queries(k_LGH[:1].repeat(1, 2, 1), 64), asked(64, 2)) is None


def test_how_many_pages_are_kept() -> None:
    selector = SLOT.make("landmarks:share=0.25,least=64,sink=16,recent=32")
    assert [selector.kept(pages, 16) for pages in (1, 4, 15, 16, 17, 100, 1001)] == [1, 4, 4, 4, 5, 25, 251]
    assert SLOT.make("landmarks:share=0,least=0,sink=16,recent=32").kept(100, 16) == 4
