"""Layers against the formula in their docstrings."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.kernels.before import Before
from headrace.layer.attention import SelfAttention
from headrace.layer.embedding import Embedding, Head
from headrace.layer.linear import Linear
from headrace.layer.mlp import ROWS, GatedMlp, Room
from headrace.layer.moe import MixtureMlp
from headrace.layer.norm import RmsNorm
from headrace.weight.formats.plain import PlainMatrix

D, F_, E, K = 8, 12, 6, 2


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def linear(outputs: int, inputs: int, bias: bool = False) -> Linear:
    weight = PlainMatrix(torch.randn(outputs, inputs).double())
    return Linear(weight, torch.randn(outputs).double() if bias else None)


def gated(activation="silu") -> GatedMlp:
    return GatedMlp(activation, gate_up=linear(2 * F_, D), down=linear(D, F_), width=F_, room=Room())


def rows(count: int) -> Tensor:
    return torch.randn(count, D).double()


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm(offset: float) -> None:
    x, weight = rows(5), torch.randn(D).double()
    want = x / (x.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt() * (offset + weight)
    assert torch.allclose(RmsNorm(weight, 1e-5, offset)(x), want, atol=1e-12)
    heads = torch.randn(5, 3, D).double()
    assert torch.allclose(
        RmsNorm(weight, 1e-5, offset)(heads)[2, 1], RmsNorm(weight, 1e-5, offset)(heads[2, 1])
    )


def test_embedding_and_head() -> None:
    table = torch.randn(10, D)
    matrix = PlainMatrix(table)
    assert torch.equal(Embedding(matrix, table.dtype)(torch.tensor([3, 3, 0])), table[[3, 3, 0]])
    assert torch.equal(Embedding(matrix, table.dtype, 2.5)(torch.tensor([3])), table[[3]] * 2.5)
    assert Embedding(matrix, torch.bfloat16, 3072**0.5).scale == 55.5
    assert torch.allclose(Head(matrix)(table[:2]), table[:2] @ table.T)


@pytest.mark.parametrize(
    ("name", "act"), [("silu", F.silu), ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"))]
)
def test_gated_mlp(name, act) -> None:
    mlp, x = gated(name), rows(4)
    gate, up = (x @ mlp.gate_up.matrix.weight_OI.T).chunk(2, -1)
    want = (act(gate) * up) @ mlp.down.matrix.weight_OI.T
    assert torch.allclose(mlp(x), want)
    assert torch.allclose(mlp(x, norm().spec, x.clone()), x + mlp(norm()(x)))


def norm() -> RmsNorm:
    return RmsNorm(torch.linspace(1, 2, D).double(), 1e-5)


def test_gated_mlp_takes_many_rows_in_parts() -> None:
    layer, counts, gate_up = gated(), [], linear(2 * F_, D)

    def watched(x: Tensor, before: Before = None, out_TO: Tensor | None = None, mix: None = None) -> Tensor:
        counts.append(len(x))
        return gate_up(x, before, out_TO=out_TO)

    layer.gate_up = watched
    x, add = rows(2 * ROWS + 3), rows(2 * ROWS + 3)
    want = layer.down(gate_up(x), "silu", add.clone())
    assert torch.allclose(layer(x, None, add.clone()), want, atol=1e-12)
    assert torch.allclose(layer(x), want - add, atol=1e-12)
    assert counts == [ROWS, ROWS, 3] * 2


def mixture(renormalise: bool = True, experts: list[GatedMlp] | None = None) -> MixtureMlp:
    experts = experts or [gated() for _ in range(E)]
    return MixtureMlp(router=linear(E, D), experts=experts, active=K, renormalise=renormalise)


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("count", [1, 2, 33])
def test_mixture_is_the_weighted_sum_of_each_rows_best_experts(renormalise: bool, count: int) -> None:
    moe, x = mixture(renormalise), rows(count)
    want = torch.zeros_like(x)
    for t in range(count):
        share = (x[t] @ moe.router.matrix.weight_OI.T).softmax(dim=-1)
        best = share.argsort(descending=True)[:K]
        total = share[best].sum() if renormalise else 1.0
        for e in best.tolist():
            want[t] += share[e] / total * moe.experts[e](x[t : t + 1])[0]
    assert torch.allclose(moe(x), want)
    assert torch.allclose(moe(x, norm().spec, x.clone()), x + moe(norm()(x)))


def test_mixture_touches_only_active_experts_and_each_once() -> None:
    """An expert that no row wants is never called; one that several want is called once, with all of them."""

    class Counted:
        def __init__(self) -> None:
            self.rows: list[int] = []

        def __call__(self, x: Tensor) -> Tensor:
            self.rows.append(len(x))
            return x

    experts = [Counted() for _ in range(E)]
    moe, x = mixture(experts=experts), rows(3)
    _, expert_TK = moe.route(x)
    assert torch.allclose(moe(x), x)  # shares sum to one
    wanted = torch.bincount(expert_TK.flatten(), minlength=E).tolist()
    assert [expert.rows for expert in experts] == [[n] if n else [] for n in wanted]
    assert 0 in wanted


def test_mixture_rows_do_not_depend_on_each_other() -> None:
    moe, x = mixture(), rows(7)
    assert torch.allclose(moe(x), torch.cat([moe(row.unsqueeze(0)) for row in x]), atol=1e-14, rtol=1e-14)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_router_shares_are_at_least_float32() -> None:
    moe = MixtureMlp(
        router=Linear(PlainMatrix(torch.randn(E, D).bfloat16())), experts=[], active=K, renormalise=False
    )
    with torch.backends.mkldnn.flags(enabled=False):
        share_TK, _ = moe.route(torch.randn(2, D).bfloat16())
    assert share_TK.dtype == torch.float32


def test_attention_hands_the_store_normed_then_rotated_heads() -> None:
    class Store:
        def attend(self, layer, q_TNH, k_TGH, v_TGH, batch):
            self.got = (layer, q_TNH, k_TGH, v_TGH, batch)
            return q_TNH * 2

    N, G, H = 4, 2, 4
    qkv, out = linear((N + 2 * G) * H, D, True), linear(D, N * H, True)
    q_norm, k_norm = (RmsNorm(torch.randn(H).double(), 1e-5) for _ in range(2))
    attention = SelfAttention(
        3, heads=N, kv_heads=G, head_size=H, qkv=qkv, out=out, q_norm=q_norm, k_norm=k_norm
    )
    store, x = Store(), rows(5)
    given = SimpleNamespace(mix=None)
    got = attention(x, torch.negative, given, store)
    layer, q_TNH, k_TGH, v_TGH, batch = store.got
    assert (layer, batch) == (3, given)
    q, k, v = qkv(x).view(5, -1, H).split((N, G, G), dim=1)
    assert torch.equal(q_TNH, -q_norm(q))
    assert torch.equal(k_TGH, -k_norm(k))
    assert torch.equal(v_TGH, v)
    assert torch.equal(got, out((q_TNH * 2).view(5, N * H)))
    assert torch.allclose(
        attention(x, torch.negative, given, store, norm().spec, x.clone()),
        x + attention(norm()(x), torch.negative, given, store),
    )


def test_room_between_products_is_kept_and_grows() -> None:
    room, like = Room(), torch.zeros(1)
    first = room.take(3, 8, like)
    assert first.shape == (3, 8) and first.dtype == like.dtype
    assert room.take(2, 8, like).data_ptr() == first.data_ptr()
    assert room.take(4, 8, like).shape == (4, 8)
