"""squeezed: clusters of a page's keys, the same whatever pages are summed up beside it."""

from __future__ import annotations

import torch

from headrace.kv.selectors.squeezed import cluster


def keys(pages: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[P, G, L, H]"""
    return torch.randn(pages, 2, 16, 24, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_every_key_is_in_one_cluster() -> None:
    k_PGLH = keys(5)
    for count in (1, 2, 5, 16):
        means_PGCH, sizes_PGC = cluster(k_PGLH, count)
        assert means_PGCH.shape == (5, 2, count, 24) and (sizes_PGC.sum(-1) == 16).all()
        total_PGH = (means_PGCH * sizes_PGC[..., None]).sum(2)
        torch.testing.assert_close(total_PGH, k_PGLH.sum(2), rtol=1e-4, atol=1e-4)


def test_directions_that_differ_are_told_apart() -> None:
    """Eleven keys about one direction and five about another, of any length."""
    random = torch.Generator().manual_seed(3)
    directions_2H = torch.nn.functional.normalize(torch.randn(2, 24, generator=random), dim=-1)
    which_L = torch.tensor([0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0])
    length_L = 1 + 9 * torch.rand(16, generator=random)
    noise_LH = 0.05 * torch.randn(16, 24, generator=random)
    k_LH = (directions_2H[which_L] + noise_LH) * length_L[:, None]
    means_PGCH, sizes_PGC = cluster(k_LH[None, None], 2)
    assert sorted(sizes_PGC[0, 0].tolist()) == [5, 11]
    like = torch.nn.functional.normalize(means_PGCH[0, 0], dim=-1) @ directions_2H.T
    assert like.amax(1).min() > 0.95


def test_a_page_gives_the_same_bits_alone_and_among_others() -> None:
    k_PGLH = keys(37)
    whole = cluster(k_PGLH, 3)
    for page in (0, 17, 36):
        alone = cluster(k_PGLH[page : page + 1], 3)
        assert all(a[0].equal(b[page]) for a, b in zip(alone, whole, strict=True))


def test_equal_keys_leave_a_cluster_empty() -> None:
    means_PGCH, sizes_PGC = cluster(torch.ones(1, 1, 16, 24), 3)
    assert sizes_PGC[0, 0].tolist() == [16, 0, 0] and means_PGCH.isfinite().all()
