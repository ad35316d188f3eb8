"""kivi: how much it rounds, how many bytes it takes, and why keys go by channel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.kernels.block_attention.reference import dequantise, quantise
from headrace.kv.codecs import SLOT
from headrace.kv.groups import GroupSpec, Member
from headrace.types import Request, SamplingParams
from tests.whole import models
from tests.whole.drive import collect, nothing_left

GROUP = GroupSpec("g", (Member(0, (0, 1), 64), Member(1, (0, 1), 64)))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("group", [16, 64])
def test_a_number_is_off_by_half_a_step(bits: int, group: int) -> None:
    """Beside what rounding scale and least value to bfloat16 costs, which the codes make up for where they can."""
    x = draw(3, 5, 128)
    codes, scale, least = quantise(x, group, bits)
    read = dequantise(codes, scale, least)
    most = x.unflatten(-1, (-1, group)).abs().amax(-1)
    step = (scale.float() / 2 + most * 2**-7).repeat_interleave(group, -1)
    assert bool(((x - read).abs() <= step).all())
    assert int(codes.max()) == (1 << bits) - 1 and int(codes.min()) == 0


def test_a_group_of_equal_numbers_and_of_nothing() -> None:
    for value in (0.0, 1.5, -3.0):
        read = dequantise(*quantise(torch.full((1, 16), value), 16, 4))
        assert read.tolist() == [[value] * 16]


def test_what_is_not_finite_does_not_look_as_if_it_were() -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        x = draw(1, 32)
        x[0, 3] = value
        read = dequantise(*quantise(x, 16, 4))
        assert not bool(read[0, :16].isfinite().any()) and bool(read[0, 16:].isfinite().all())


@pytest.mark.parametrize(
    ("spec", "bits"),
    [("kivi", 4.5), ("kivi:bits=2", 2.5), ("kivi:group=32,residual=32", 5), ("kivi:bits=2,group=32", 3)],
)
def test_bits_per_number(spec: str, bits: float) -> None:
    """As the paper counts them: codes, and a scale and a least value of 16 bits for each group."""
    codec = SLOT.make(spec)
    tokens = codec.block_tokens
    assert codec.page_bytes(GROUP, tokens, torch.float32) * 8 == GROUP.elements_per_token * tokens * bits


def test_keys_lose_less_by_channel() -> None:
    """With a channel that is large in every token, as keys have; by token, its scale would be everybody's."""
    x_LH = draw(64, 64)
    x_LH[:, 5] += 30
    by_channel = dequantise(*quantise(x_LH.T.contiguous(), 64, 2)).T
    by_token = dequantise(*quantise(x_LH, 64, 2))
    assert (by_channel - x_LH).norm() < 0.5 * (by_token - x_LH).norm()


@pytest.mark.parametrize(
    "spec",
    ["kivi:bits=3", "kivi:group=24", "kivi:group=64,residual=32", "kivi:residual=96", "kivi:bits=four"],
)
def test_options_that_are_none(spec: str) -> None:
    with pytest.raises(ConfigError):
        SLOT.make(spec)


def test_memory_is_really_saved() -> None:
    """A sequence of 90 tokens holds pages of whole blocks and of its unfinished one, and no others."""
    held = {}
    for codec in ("bf16", "kivi:group=16,residual=16"):
        config = EngineConfig(stack={"kv-codec": codec}, page_tokens=16, threads=1, prefix_cache=False)
        made = Engine(config, decoder=models.decoder("int4"), poison=True)
        params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
        made.add(Request(id="r", prompt=tuple(i % models.VOCAB for i in range(90)), params=params))
        for _ in range(3):
            made.step()
        [holding] = [made.kv.tables.holding(seq.id, seq.num_computed) for seq in made.queues]
        held[codec] = sum(holding.live) * made.kv.tables.sizes.page_bytes
        if codec != "bf16":
            assert [group.holds for group in made.kv.tables.groups] == ["blocks", "rest"]
            assert holding.live[1] == 1, "tokens of blocks that are whole were not let go of"
    assert held["kivi:group=16,residual=16"] < 0.7 * held["bf16"]


def test_the_newest_tokens_are_read_unrounded() -> None:
    """A prompt shorter than a block gives the same tokens as bfloat16 keys and values do."""
    found = []
    for codec in ("bf16", "kivi:group=16,residual=32"):
        config = EngineConfig(stack={"kv-codec": codec}, page_tokens=8, threads=1)
        made = Engine(config, decoder=models.decoder("full"), poison=True)
        params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
        made.add(Request(id="r", prompt=tuple(range(3, 20)), params=params))
        found.append(collect(made))
        nothing_left(made)
    assert found[0] == found[1]
