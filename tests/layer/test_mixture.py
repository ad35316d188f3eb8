"""A mixture of quantised experts: native routing has the bits of the reference, and unused experts stay untouched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels.route import reference
from headrace.layer import moe
from headrace.layer.linear import Linear
from headrace.layer.mlp import GatedMlp, Room
from headrace.layer.moe import MixtureMlp
from headrace.layer.norm import RmsNorm
from headrace.weight.formats import SLOT

D, F, E, K = 64, 96, 12, 3
SPEC = "int4:group=32"


def linear(outputs: int, inputs: int, random: torch.Generator) -> Linear:
    packing = SLOT.make(SPEC).start(outputs, inputs, torch.float32)
    packing.put(0, torch.randn(outputs, inputs, generator=random) / inputs**0.5)
    return Linear(packing.finish())


def mixture(renormalise: bool = True) -> MixtureMlp:
    random = torch.Generator().manual_seed(3)
    room = Room()
    experts = [
        GatedMlp("silu", gate_up=linear(2 * F, D, random), down=linear(D, F, random), width=F, room=room)
        for _ in range(E)
    ]
    return MixtureMlp(router=linear(E, D, random), experts=experts, active=K, renormalise=renormalise)


def rows(count: int) -> Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(count)) * 2


@pytest.fixture(params=kernels.available())
def level(request: pytest.FixtureRequest):
    with kernels.forced(request.param):
        yield request.param


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5, 64])
def test_the_bits_are_those_of_the_reference_around_the_same_products(
    level: str, renormalise: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x, norm = mixture(renormalise), rows(count), RmsNorm(torch.linspace(1, 2, D), 1e-5).spec
    got, with_ends = layer(x), layer(x, norm, x.clone())
    for name in ("route", "group", "gather", "scatter_add"):
        monkeypatch.setattr(moe, name, getattr(reference, name))
    assert torch.equal(layer(x), got)
    assert torch.equal(layer(x, norm, x.clone()), with_ends)


def test_rows_do_not_depend_on_the_batch(level: str) -> None:
    if level == kernels.REFERENCE:
        pytest.skip("its matrix products are PyTorch's")
    layer, x = mixture(), rows(40)
    whole = layer(x, None, x.clone())
    for start, stop in ((0, 1), (17, 18), (3, 12), (0, 39)):
        part = x[start:stop]
        assert torch.equal(layer(part, None, part.clone()), whole[start:stop])


def test_the_weights_of_unused_experts_are_never_read(level: str) -> None:
    """Their bytes are overwritten with scales that are NaN: one that was read would show."""
    layer, x = mixture(), rows(2)
    want = layer(x)
    used = set(layer.route(x)[1].flatten().tolist())
    assert 0 < len(used) < E
    for expert in set(range(E)) - used:
        for part in (layer.experts[expert].gate_up, layer.experts[expert].down):
            part.matrix.weight.packed.fill_(0xFF)
    assert torch.equal(layer(x), want)
    for expert in used:
        layer.experts[expert].down.matrix.weight.packed.fill_(0xFF)
    assert bool(layer(x).isnan().any()), "the poison is none"
