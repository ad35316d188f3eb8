"""What each recipe computes, against the obvious way in float64, and against rounding to nearest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.forward.calibration import BlockPass
from headrace.weight.assemble import make
from headrace.weight.codes import Coded, nearest
from headrace.weight.folds import folds, hadamard
from headrace.weight.hessian import compensate, error
from headrace.weight.piece import Moments, Piece, Seen
from headrace.weight.recipes import SLOT
from tests.weight.recipes import models

SPECS = (
    "int4:group=32",
    "int3:group=32",
    "int3:group=0,asymmetric=true",
    "int2:group=64",
    "int4_dual:group=32",
    "spqr:base=int3:group=32,outliers=0.04",
)
each_spec = pytest.mark.parametrize("spec", SPECS)


def form(spec: str) -> Coded:
    made = make(spec)
    assert isinstance(made, Coded)
    return made


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(count: int, inputs: int, seed: int = 0) -> Tensor:
    """Activations whose inputs go together, some of them far larger than the others."""
    x_TI = random(count, inputs, seed=seed) @ random(inputs, inputs, seed=seed + 1) / inputs**0.5
    x_TI[:, ::17] *= 6
    return x_TI


def obvious(
    weight_OI: Tensor, products_II: Tensor, form: Coded, damp: float, order: list[int], sort: bool
) -> Tensor:
    """Optimal brain compression, one input after the other, with the inverse of what is left made anew each time."""
    inputs, group = weight_OI.shape[1], form.group_of(weight_OI.shape[1])
    damped_II = products_II + damp * products_II.diagonal().mean() * torch.eye(inputs, dtype=torch.float64)
    remaining = [torch.linalg.inv(damped_II[order[p:]][:, order[p:]])[0, 0] for p in range(inputs)]
    importance_I = torch.empty(inputs, dtype=torch.float64)
    importance_I[order] = 1 / torch.stack(remaining)
    left_OI, grid = weight_OI.clone(), form.grid(weight_OI, importance_I)
    if sort:
        grid.fit(0, weight_OI)
    for place, i in enumerate(order):
        if not sort and i % group == 0:
            grid.fit(i, left_OI[:, i : i + group])
        near_O = grid.round(i, left_OI[:, i : i + 1]).squeeze(1)
        rest = order[place:]
        inverse = torch.linalg.inv(damped_II[rest][:, rest])
        left_OI[:, rest] -= ((left_OI[:, i] - near_O) / inverse[0, 0])[:, None] * inverse[0]
    return grid.stored()


@each_spec
@pytest.mark.parametrize("sort", [False, True])
def test_compensation_is_optimal_brain_compression(spec: str, sort: bool) -> None:
    """Group by group and slab by slab, the same codes; 160 inputs are more than a slab."""
    weight_OI, x_TI = random(7, 160, seed=3), rows(300, 160)
    products_II = x_TI.T @ x_TI
    order = (
        products_II.diagonal().argsort(descending=True, stable=True).tolist() if sort else list(range(160))
    )
    want = obvious(weight_OI, products_II, form(spec), 0.01, order, sort)
    assert torch.equal(compensate(weight_OI, products_II, form(spec), damp=0.01, sort=sort), want)


@each_spec
@pytest.mark.parametrize("sort", [False, True])
def test_compensation_loses_less_than_rounding_to_nearest(spec: str, sort: bool) -> None:
    for seed in range(4):
        weight_OI, x_TI = random(20, 96, seed=seed).float(), rows(200, 96, seed).float()
        products_II = x_TI.T @ x_TI
        stored = compensate(weight_OI, products_II, form(spec), sort=sort)
        ours = error(form(spec).values(stored, 96) - weight_OI, products_II)
        assert ours < 0.9 * error(nearest(form(spec), weight_OI) - weight_OI, products_II), seed


def test_an_error_is_that_of_the_product() -> None:
    x_TI, difference_OI = rows(50, 24), random(9, 24, seed=5)
    assert error(difference_OI, x_TI.T @ x_TI) == pytest.approx(
        float((x_TI @ difference_OI.T).square().sum())
    )


def test_without_rows_every_input_counts_the_same() -> None:
    weight_OI = random(6, 64).float()
    stored = compensate(weight_OI, torch.zeros(64, 64), form("int4:group=32"))
    assert torch.equal(form("int4:group=32").values(stored, 64), nearest(form("int4:group=32"), weight_OI))


def test_moments_are_of_all_rows() -> None:
    x_TI, scale_I = rows(40, 12), random(12).abs() + 0.5
    parts = Moments.of(12, torch.float64)
    for part in (x_TI[:7], x_TI[7:7], x_TI[7:]):
        parts.add(part)
    assert parts.count == 40
    parts.divide(scale_I)
    x_TI = x_TI / scale_I
    assert torch.allclose(parts.mean_I, x_TI.abs().mean(0)) and torch.allclose(
        parts.most_I, x_TI.abs().amax(0)
    )
    assert torch.allclose(parts.products_II, x_TI.T @ x_TI)


@pytest.mark.parametrize("size", [1, 2, 24, 64, 7])
def test_rotations_are_orthogonal_and_spread(size: int) -> None:
    turn = hadamard(size)
    assert torch.allclose(turn @ turn.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    assert torch.equal(turn, hadamard(size)) and (size == 1 or not torch.equal(turn, hadamard(size, 1)))
    if size == 64:
        assert torch.allclose(turn.abs(), torch.full((64, 64), 1 / 8, dtype=torch.float64))


# ---- in a block ----


def observed(name: str = "qwen2") -> tuple[Architecture, Piece, dict[str, Tensor]]:
    """A block, and the rows that each of its products reads."""
    model = models.architecture(name)
    found = models.tensors(model)
    tensors = {n.removeprefix("blocks.0."): t for n, t in found.items() if n.startswith("blocks.0.")}
    x_TD = found["embed.weight"][torch.arange(48)]
    read: dict[str, Tensor] = {}
    BlockPass(model, 0, tensors)(x_TD, lambda what, rows: read.update({what: rows.clone()}))
    return model, Piece(model, 0, tensors), read


def seen_of(read: dict[str, Tensor]) -> Seen:
    seen = Seen()
    for what, x in read.items():
        seen.tell(what, x)
    return seen


def test_awq_takes_the_best_scale_of_its_grid() -> None:
    """Judged by the outputs themselves, row by row, as the paper's formula says."""
    _, piece, read = observed()
    coded, awq = form("int3:group=32"), SLOT.make("awq:clip=0")
    x_TD, losses, scales = read["attention.qkv"], [], []
    for step in range(20):
        scale = x_TD.abs().mean(0).clamp(min=1e-4) ** (step / 20)
        scale = scale.clamp(min=1e-4) / (scale.max() * scale.min()).sqrt()
        scales.append(scale)
        loss = 0.0
        for part in ("q", "k", "v"):
            weight = piece.tensors[f"attention.{part}.weight"]
            rounded = nearest(coded, weight * scale).double()
            loss += float(((x_TD / scale) @ rounded.T - x_TD @ weight.T).square().sum())
        losses.append(loss)
    best = min(range(20), key=losses.__getitem__)
    before = piece.tensors["attention_norm.weight"].clone()
    awq.choose(piece, seen_of(read), coded)
    assert best > 0, "a case where scaling pays"
    assert torch.allclose(piece.tensors["attention_norm.weight"], before / scales[best], rtol=1e-9)
    assert losses[best] < 0.9 * losses[0]


def test_awq_shares_a_value_channels_scale_among_the_heads_that_read_it() -> None:
    model, piece, read = observed("llama")
    spec = model.blocks[0].attention
    fold = folds(piece.block)[1]
    x_TI = read["attention.out"]
    by_head = x_TI.view(len(x_TI), spec.kv_heads, 2, spec.head_size)
    assert torch.allclose(fold.mean(x_TI.abs().mean(0)), by_head.abs().mean((0, 2)).flatten())
    assert torch.equal(fold.most(x_TI.abs().amax(0)), by_head.abs().amax((0, 2)).flatten())
    spread = fold.spread(torch.arange(16.0)).view(4, 8)
    assert torch.equal(spread, torch.arange(16.0).view(2, 8)[torch.tensor([0, 0, 1, 1])])


def test_awq_clips_only_where_that_pays() -> None:
    """Group by group and output by output, by the rows themselves; queries and keys are left alone."""
    _, piece, read = observed()
    coded = form("int3:group=32")
    before = {name: t.clone() for name, t in piece.tensors.items()}
    SLOT.make("awq:grid=0,clip=10").choose(piece, seen_of(read), coded)
    clipped = 0
    for name in piece.matrices():
        after, was = piece.tensors[name], before[name]
        if name in ("attention.q.weight", "attention.k.weight"):
            assert torch.equal(after, was)
            continue
        product = {"v": "attention.qkv", "gate": "mlp.gate_up", "up": "mlp.gate_up"}.get(name.split(".")[-2])
        x_TI = read[product or name.removesuffix(".weight")]
        for first in range(0, was.shape[1], 32):
            part = slice(first, first + 32)
            limits = was[:, part].abs().amax(1, keepdim=True) * (1 - torch.arange(11.0).double() / 20)
            losses = torch.stack(
                [
                    (x_TI[:, part] @ (_rounded(coded, was, part, limit) - was[:, part]).T).square().sum(0)
                    for limit in limits.split(1, 1)
                ]
            )
            best = losses.min(0)
            got = (x_TI[:, part] @ (nearest(coded, after)[:, part] - was[:, part]).T).square().sum(0)
            assert torch.allclose(got, best.values, rtol=1e-9)
            clipped += int((best.indices > 0).sum())
    assert clipped > 20, "a case where clipping pays"


def _rounded(coded: Coded, weight: Tensor, part: slice, limit: Tensor) -> Tensor:
    tried = weight.clone()
    tried[:, part] = tried[:, part].clamp(-limit, limit)
    return nearest(coded, tried)[:, part].double()


def test_qoq_takes_outliers_out_of_keys_and_of_smoothed_inputs() -> None:
    model, piece, read = observed("llama")
    spec, half = model.blocks[0].attention, model.blocks[0].attention.head_size // 2
    keys_GH = read["keys"].abs().amax(0)
    qoq = SLOT.make("qoq:rotate=false")
    qoq.choose(piece, seen_of(read), form("int4_dual:group=32"))
    after: dict[str, Tensor] = {}
    x_TD = models.tensors(model)["embed.weight"][torch.arange(48)]
    BlockPass(model, 0, piece.tensors)(x_TD, lambda what, rows: after.update({what: rows.clone()}))
    most = torch.maximum(keys_GH[:, :half], keys_GH[:, half:]).repeat(1, 2)
    assert torch.allclose(after["keys"].abs().amax(0), keys_GH / most.sqrt())
    assert spec.kv_heads == len(keys_GH)
    for product in ("attention.out", "mlp.down"):
        spread = [x[product].abs().amax(0) for x in (read, after)]
        assert (spread[1].max() / spread[1].median()) < (spread[0].max() / spread[0].median())


def test_qoq_rotates_outliers_away() -> None:
    """One input in eight-fold size is spread over all: the largest comes down to the others."""
    model = models.architecture("llama")
    found = models.tensors(model)
    qoq = SLOT.make("qoq")
    ends = Piece(model, None, {n: t for n, t in found.items() if not n.startswith("blocks.")})
    piece = Piece(
        model, 0, {n.removeprefix("blocks.0."): t for n, t in found.items() if n.startswith("blocks.0.")}
    )
    peaks = []
    for turned in (False, True):
        if turned:
            qoq.rewrite(ends)
            qoq.rewrite(piece)
        most: list[Tensor] = []
        BlockPass(model, 0, piece.tensors)(
            ends.tensors["embed.weight"],
            lambda what, rows, most=most: (
                most.append(rows.abs().amax(0)) if what == "attention.qkv" else None
            ),  # type: ignore[misc]
        )
        peaks.append(float(most[0].max() / most[0].median()))
    assert peaks[1] < 0.5 * peaks[0]
