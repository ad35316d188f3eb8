"""Which weights are kept apart, and what spqr makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from headrace import kernels
from headrace.errors import ConfigError
from headrace.kernels import int_linear, outliers, sparse_add
from headrace.kernels.sparse_add import SparseWeight
from headrace.weight import hessian
from headrace.weight.codes import store_nearest
from headrace.weight.formats import SLOT
from headrace.weight.formats.spqr import SpqrMatrix


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def choose_outliers(rows_RI: Tensor, **given: Any) -> Tensor:
    """Marks, bool [R, I]."""
    chosen_RI = torch.zeros(rows_RI.shape, dtype=torch.bool)
    chosen_RI.view(-1)[outliers.choose(rows_RI.bfloat16(), **given)] = True
    return chosen_RI


def error(rows_RI: Tensor, chosen_RI: Tensor, group: int) -> float:
    kept_RI = rows_RI.masked_fill(chosen_RI, 0)
    weight = int_linear.round_and_pack(kept_RI, group=group, bits=3, asymmetric=False)
    return float((int_linear.outputs(weight, torch.arange(len(rows_RI))) - kept_RI).square().sum())


def test_weights_that_set_a_step_of_their_own_are_chosen() -> None:
    rows_RI = random(64, 128).clamp(-2, 2)
    places = [(3, 5), (3, 90), (40, 64), (63, 127), (0, 0)]
    for place in places:
        rows_RI[place] = 50.0
    chosen_RI = choose_outliers(rows_RI, group=32, count=5)
    assert sorted(map(tuple, chosen_RI.nonzero().tolist())) == sorted(places)


def test_weights_of_a_size_are_chosen_together_or_not_at_all() -> None:
    """One of two that are alike saves nothing; a smaller one that stands alone saves more than half of such a pair."""
    rows_RI = torch.full((64, 128), 1.0)
    rows_RI[5, 3], rows_RI[5, 70] = -10.0, 10.0
    rows_RI[9, 100] = 8.0
    pair, alone = [[5, 3], [5, 70]], [[9, 100]]
    assert choose_outliers(rows_RI, group=128, count=1).nonzero().tolist() == alone
    assert choose_outliers(rows_RI, group=128, count=3).nonzero().tolist() == pair + alone


@pytest.mark.parametrize("count", [0, 1, 7, 100, 500])
@pytest.mark.parametrize("group", [32, 128, 200])
def test_every_part_has_as_many_as_asked_for(group: int, count: int) -> None:
    rows_RI = random(128, 200)
    rows_RI[:30] = 0
    chosen_RI = choose_outliers(rows_RI, group=group, count=count, parts=2)
    assert chosen_RI.view(2, -1).sum(1).tolist() == [count, count]
    for part in (0, 1):
        rows = slice(64 * part, 64 * part + 64)
        alone_RI = choose_outliers(rows_RI[rows], group=group, count=count)
        assert torch.equal(chosen_RI[rows], alone_RI)


def test_of_weights_that_are_alike_the_first_ones_are_chosen() -> None:
    chosen_RI = choose_outliers(torch.ones(64, 96), group=32, count=40)
    assert chosen_RI.flatten().nonzero().squeeze(1).tolist() == list(range(40))


def test_chosen_weights_help_more_than_the_largest_and_any_others() -> None:
    """The largest of rows without a tail save nothing; those of small rows with one do."""
    rows_RI = 2 * torch.rand(64, 256, generator=torch.Generator().manual_seed(1)) - 1
    rows_RI[::2] = 0.15 * random(32, 256)
    rows_RI[::2][random(32, 256, seed=3) > 2.2] = 0.9
    count = 160
    chosen = error(rows_RI, choose_outliers(rows_RI, group=128, count=count), 128)
    largest_RI = torch.zeros(64, 256, dtype=torch.bool)
    largest_RI.view(-1)[rows_RI.abs().flatten().topk(count).indices] = True
    other_RI = torch.zeros(64, 256, dtype=torch.bool)
    other_RI.view(-1)[torch.randperm(64 * 256, generator=torch.Generator().manual_seed(2))[:count]] = True
    assert chosen < 0.8 * min(error(rows_RI, largest_RI, 128), error(rows_RI, other_RI, 128))


@pytest.mark.parametrize("seed", range(4))
def test_of_rows_that_differ_in_size_no_worse_are_chosen_than_the_largest(seed: int) -> None:
    rows_RI = random(64, 256, seed=seed + 10) * torch.exp(0.5 * random(64, 1, seed=seed))
    largest_RI = torch.zeros(64, 256, dtype=torch.bool)
    largest_RI.view(-1)[rows_RI.abs().flatten().topk(160).indices] = True
    chosen_RI = choose_outliers(rows_RI, group=128, count=160)
    assert error(rows_RI, chosen_RI, 128) < error(rows_RI, largest_RI, 128)


def test_importance_draws_outliers_to_its_inputs() -> None:
    """An error that counts for a thousand is kept out, though it sets no step."""
    rows_RI, importance_I = random(64, 128), torch.ones(128)
    importance_I[77] = 1000.0
    plain_RI, drawn_RI = (
        choose_outliers(rows_RI, group=128, count=40, importance_I=i) for i in (None, importance_I)
    )
    assert plain_RI[:, 77].sum() <= 4
    assert drawn_RI[:, 77].sum() >= 30


def spqr(spec: str, weight_OI: Tensor) -> SpqrMatrix:
    packing = SLOT.make(spec).start(*weight_OI.shape, torch.float32)
    packing.put(0, weight_OI)
    matrix = packing.finish()
    assert isinstance(matrix, SpqrMatrix)
    return matrix


def test_outliers_are_exact_and_the_rest_is_the_base() -> None:
    weight_OI = random(130, 200).bfloat16().float()
    matrix = spqr("spqr:base=int3:group=32,outliers=0.03", weight_OI)
    ids_O = torch.arange(130)
    dense_OI, whole_OI = matrix.dense.rows(ids_O), matrix.rows(ids_O)
    chosen_OI = whole_OI != dense_OI
    assert int(chosen_OI.sum()) == len(matrix.sparse.entries) == 130 * 6
    assert torch.equal(whole_OI[chosen_OI], weight_OI[chosen_OI])
    assert not dense_OI[chosen_OI].any()
    weight_OI[chosen_OI] = 0
    packing = SLOT.make("int3:group=32").start(130, 200, torch.float32)
    packing.put(0, weight_OI)
    assert torch.equal(packing.finish().rows(ids_O), dense_OI)


def test_kept_weights_save_more_than_smaller_groups_where_weights_or_inputs_have_tails() -> None:
    """At the same bits, behind GPTQ's feedback; of importance, as a few inputs that are far more active are kept."""
    small, kept = SLOT.make("int3:group=32"), SLOT.make("spqr:outliers=0.01")
    assert kept.num_bytes(128, 512, torch.float32) <= 1.001 * small.num_bytes(128, 512, torch.float32)
    weight_OI, x_TI = random(128, 512), random(1024, 512, seed=1) @ random(512, 512, seed=2)
    tailed_OI, active_TI = weight_OI.clone(), x_TI.clone()
    tailed_OI[random(128, 512, seed=3) > 2.6] *= 6
    active_TI[:, ::170] *= 30
    for rows_OI, inputs_TI, share in ((tailed_OI, x_TI, 0.8), (weight_OI, active_TI, 0.5)):
        products_II = inputs_TI.T @ inputs_TI
        errors = [
            hessian.error(
                form.values(hessian.compensate(rows_OI, products_II, form), 512) - rows_OI, products_II
            )
            for form in (kept, small)
        ]
        assert errors[0] < share * errors[1]


def test_stored_outliers_beyond_the_matrix_are_refused() -> None:
    form = SLOT.make("spqr:outliers=0.05")
    good_RB = store_nearest(form, random(64, 96))
    at = form.dense().row_bytes(96)
    broken = {
        "an output below": (0, at, 0x80),
        "an output above": (63, at + 4, 0x7F),
        "an input": (5, at + 5 + 1, 0xFF),
        "a weight": (9, at + 15 + 1, 0x7F),
    }
    for what, (row, byte, value) in broken.items():
        bad_RB = good_RB.clone()
        bad_RB[row, byte] = value
        if what == "a weight":
            bad_RB[row, byte - 1] = 0x80
        with pytest.raises(ValueError, match="beyond the matrix: the checkpoint is damaged"):
            form.values(bad_RB, 96)
        with pytest.raises(ValueError, match="beyond the matrix: the checkpoint is damaged"):
            form.start(64, 96, torch.float32).put_stored(0, bad_RB)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("spqr:base=plain", "does not round in groups"),
        ("spqr:base=spqr", "does not round in groups"),
        ("spqr:base=int33", "int3"),
        ("spqr:outliers=0", "above 0"),
        ("spqr:outliers=0.5", "at most 0.25"),
    ],
)
def test_bases_and_shares_that_make_no_sense_are_refused(spec: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        SLOT.make(spec)


def test_an_input_beyond_an_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="use --weights int3"):
        SLOT.make("spqr").start(1, 65_537, torch.float32)


@pytest.mark.parametrize("level", kernels.available())
def test_damaged_entries_are_refused(level: str) -> None:
    weight = sparse_add.pack(random(70, 97), random(70, 97, seed=1) > 1)
    far = weight.entries.clone()
    far[3] |= 0xFFFF
    broken = [SparseWeight(weight.starts, far, 97)]
    for place, value in ((0, -1), (1, 2**30), (1, -(2**30)), (70, len(far) + 1)):
        starts = weight.starts.clone()
        starts[place] = value
        broken.append(SparseWeight(starts, weight.entries, 97))
    for one in broken:
        for rows in (1, 3):
            with (
                kernels.forced(level),
                pytest.raises(ValueError, match="damaged in memory: load the model again"),
            ):
                sparse_add.sparse_add(torch.ones(rows, 97), one, torch.zeros(rows, 70))
        with kernels.forced(level), pytest.raises(ValueError, match="damaged in memory"):
            sparse_add.put_outputs(one, torch.arange(70), torch.zeros(70, 97))
