"""Contract of the slot `positions`, for every technique in its index."""

from __future__ import annotations

import math

import pytest
import torch

from headrace.errors import ConfigError
from headrace.layer.positions import SLOT

HEAD, THETA, CONTEXT = 16, 1000.0, 64
SPECS = {
    "rope": "rope",
    "linear": "linear:factor=4",
    "dynamic": "dynamic:factor=4,original_context=16",
    "yarn": "yarn:factor=4,original_context=16",
    "dca": "dca:chunk=64",
    "llama3": "llama3:factor=4,original_context=16",
}
every = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def start(spec: str, dtype: torch.dtype = torch.float64, context: int = CONTEXT):
    return SLOT.make(spec).start(HEAD, THETA, context, "cpu", dtype)


def rows(count: int = CONTEXT, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, 3, HEAD, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(
        dtype
    )


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    return torch.allclose(got, want, rtol=0, atol=1e-12)


def test_every_technique_is_under_test() -> None:
    assert set(SPECS) == set(SLOT.index)


@every
def test_card_refuses_models_whose_layers_differ(spec: str) -> None:
    card = SLOT.make(spec).card
    assert card.slot == SLOT.name and card.paper.startswith("https://")
    assert "per_layer_positions" in {fact for fact, _ in card.breaks}


@every
def test_spec_round_trip_and_equality(spec: str) -> None:
    one = SLOT.make(spec)
    assert one == SLOT.make(SLOT.spec_of(one)) and hash(one) == hash(SLOT.make(spec))


@every
def test_position_0_is_the_identity_up_to_scale(spec: str) -> None:
    live, x_TNH = start(spec), rows(1)
    assert close(live.rotate(x_TNH, torch.tensor([0])), x_TNH * live.scale)


@every
def test_length_is_kept_up_to_scale(spec: str) -> None:
    live, x_TNH = start(spec), rows()
    got = live.rotate(x_TNH, torch.arange(CONTEXT))
    assert close(got.norm(dim=-1), x_TNH.norm(dim=-1) * live.scale)
    assert not torch.allclose(got[1:], x_TNH[1:])


@every
def test_shape_and_dtype_are_kept_and_the_input_is_not_touched(spec: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x_TNH = rows(5, dtype)
        before = x_TNH.clone()
        got = start(spec, dtype).rotate(x_TNH, torch.arange(5))
        assert got.dtype == dtype and got.shape == x_TNH.shape and torch.equal(x_TNH, before)


@every
def test_a_row_does_not_depend_on_the_others(spec: str) -> None:
    """Chunks, any order, any later tokens, any context: the same bits."""
    live, x_TNH = start(spec, torch.float32), rows(dtype=torch.float32)
    whole = live.rotate(x_TNH, torch.arange(CONTEXT))
    for first, last in ((0, 5), (5, 6), (6, 40), (40, CONTEXT)):
        assert torch.equal(live.rotate(x_TNH[first:last], torch.arange(first, last)), whole[first:last])
    backwards = torch.arange(CONTEXT).flip(0)
    assert torch.equal(live.rotate(x_TNH[backwards], backwards), whole[backwards])
    short = start(spec, torch.float32, context=40)
    assert torch.equal(short.rotate(x_TNH[:40], torch.arange(40)), whole[:40])


@every
def test_at_gives_what_rotate_gives(spec: str) -> None:
    live, x_TNH, positions_T = start(spec), rows(3), torch.tensor([7, 7, 63])
    assert torch.equal(live.at(positions_T)(x_TNH), live.rotate(x_TNH, positions_T))


@every
def test_scores_depend_on_distance_alone(spec: str) -> None:
    """Of one base: dynamic scaling has it up to the original context."""
    live, reach = start(spec), 16 if spec.startswith("dynamic") else CONTEXT
    q_1NH, k_1NH = rows(1), rows(2)[1:]
    at = torch.arange(reach - 3)
    q_TNH = live.rotate(q_1NH.expand(len(at), -1, -1), at + 3)
    k_TNH = live.rotate(k_1NH.expand(len(at), -1, -1), at)
    score_TN = (q_TNH * k_TNH).sum(dim=-1)
    assert torch.allclose(score_TN, score_TN[:1].expand_as(score_TN), rtol=0, atol=1e-10)


@every
def test_float32_tables_are_rounded_float64_ones(spec: str) -> None:
    """Angles are exact far out, where float32 angles would be off by more than a thousandth."""
    far = 20_000
    exact, rounded = start(spec, torch.float64, far + 1), start(spec, torch.float32, far + 1)
    exact, rounded = (getattr(live, "_tables", live) for live in (exact, rounded))
    assert torch.equal(exact.cos_LF[far].float(), rounded.cos_LF[far])
    assert rounded.cos_LF.dtype == torch.float32


@every
def test_positions_beyond_the_context_are_an_error(spec: str) -> None:
    if spec.startswith("dca"):
        pytest.skip("its positions begin again, and end nowhere")
    with pytest.raises(IndexError):
        start(spec).rotate(rows(1), torch.tensor([CONTEXT]))


def angle(spec: str, position: int, context: int = CONTEXT) -> torch.Tensor:
    """Angles of all pairs at a position, modulo a turn, in turns."""
    live = start(spec, context=context)
    return torch.atan2(live.sin_LF[position], live.cos_LF[position])


def test_linear_is_rope_at_a_fraction_of_the_position() -> None:
    assert close(angle("linear:factor=4", 40), angle("rope", 10))


def test_dynamic_is_rope_within_the_original_context() -> None:
    spec = "dynamic:factor=4,original_context=16"
    assert close(angle(spec, 15), angle("rope", 15))
    assert not close(angle(spec, 16), angle("rope", 16))


@pytest.mark.parametrize("position", [16, 63, 9_000])
def test_dynamic_is_rope_with_the_base_for_the_length(position: int) -> None:
    base = THETA * (4 * (position + 1) / 16 - 3) ** (HEAD / (HEAD - 2))
    want = SLOT.make("rope").start(HEAD, base, position + 1, "cpu", torch.float64)
    got = start("dynamic:factor=4,original_context=16", context=position + 1)
    assert torch.allclose(got.sin_LF[position], want.sin_LF[position], rtol=0, atol=1e-9)


def test_dynamic_turns_its_slowest_pair_as_far_as_at_the_original_length() -> None:
    """The point of the formula with factor 1: at length n the slowest pair is slowed by n / original."""
    spec = "dynamic:factor=1,original_context=16"
    slowest = angle(spec, 63)[-1]
    assert math.isclose(slowest, angle("rope", 63)[-1] * 16 / 64, rel_tol=1e-9)


def test_yarn_keeps_fast_pairs_and_slows_slow_ones() -> None:
    spec = "yarn:factor=8,original_context=4096"
    plain, got = angle("rope", 1), angle(spec, 1)
    assert math.isclose(got[0], plain[0], rel_tol=1e-9)
    assert math.isclose(
        start("yarn:factor=8,original_context=16").sin_LF[1, -1],
        math.sin(plain[-1] / 8) * scale(8),
        rel_tol=1e-9,
    )
    assert (got <= plain + 1e-12).all()


def scale(factor: float) -> float:
    return 0.1 * math.log(factor) + 1


def test_yarn_attention_factor() -> None:
    assert math.isclose(start("yarn:factor=4,original_context=16").scale, scale(4))
    assert start("yarn:factor=4,original_context=16,attention_factor=1.5").scale == 1.5
    assert start("yarn:factor=4,original_context=16,mscale=1,mscale_all_dim=1").scale == 1


def test_llama3_keeps_fast_pairs_and_slows_slow_ones() -> None:
    plain, got = angle("rope", 1), angle("llama3:factor=8,original_context=128", 1)
    assert math.isclose(got[0], plain[0], rel_tol=1e-9)
    assert math.isclose(got[-1], plain[-1] / 8, rel_tol=1e-9)


@pytest.mark.parametrize(
    "spec",
    [
        "linear",
        "linear:factor=0.5",
        "linear:factor=nan",
        "dynamic:factor=2",
        "dynamic:factor=2,original_context=0",
        "yarn:factor=2",
        "yarn:factor=0,original_context=16",
        "yarn:factor=2,original_context=16,beta_slow=40",
        "yarn:factor=2,original_context=16,attention_factor=0",
        "llama3:factor=2,low_freq_factor=4",
        "ropes",
    ],
)
def test_options_are_checked(spec: str) -> None:
    with pytest.raises(ConfigError):
        SLOT.make(spec)


def test_odd_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="even head size"):
        SLOT.make("rope").start(15, THETA, CONTEXT, "cpu", torch.float32)
