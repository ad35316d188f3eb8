"""dca: equal to dense attention whose distances are written out, however the prompt is cut, shared or paused."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.forward.decoder import Decoder
from headrace.forward.load import random
from headrace.forward.memory import pages_for
from headrace.layer import rotary
from headrace.layer.positions import SLOT
from headrace.params import SamplingParams
from headrace.types import Request
from headrace.weight.assemble import make
from tests.models.dense_kv import DenseKV, batch_of
from tests.whole import models
from tests.whole.drive import Ask, Fork, Outputs, asks, collect, nothing_left, prompt, scripted

CHUNK, LOCAL = 16, 5
SPEC = f"dca:chunk={CHUNK},local={LOCAL}"
LENGTHS = (60, 41, 15, 16, 70, 33)
"""Of the prompts."""


@functools.cache
def decoder(positions: Any, weights: str = "", skipper: str = "") -> Decoder:
    """The model `full`, or `int4`, with another position scheme, and the same weights."""
    name = "int4" if weights else "full"
    plain = models.decoder(name, skipper).architecture
    blocks = tuple(
        dataclasses.replace(block, attention=dataclasses.replace(block.attention, positions=positions))
        for block in plain.blocks
    )
    form = make(weights) if weights else None
    dtype = torch.float32 if weights else torch.float64
    return random(dataclasses.replace(plain, blocks=blocks), sum(map(ord, name)), dtype, form=form)


def engine(spec: str = SPEC, skipper: str = "", **options: Any) -> Engine:
    stack = {"policy": "sarathi:tokens=5,idle=9", "positions": spec, **options.pop("stack", {})}
    stack |= {"skipper": skipper} if skipper else {}
    config = EngineConfig(stack=stack, page_tokens=options.pop("page_tokens", 4), threads=1, **options)
    made = decoder(SLOT.make(spec), config.stack.get("weights", ""), skipper)
    return Engine(config, decoder=made, poison=True)


@dataclass(frozen=True, kw_only=True)
class Unturned:
    """No rotation at all: the twin does it."""

    chunk: ClassVar[None] = None

    def start(self, *_: object) -> Unturned:
        return self

    def at(self, _: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x_TNH: x_TNH


class Twin(DenseKV):
    """Keys and values of one text; every distance by the rule."""

    def attend(self, layer, q_TNH, k_TGH, v_TGH, batch):
        T, each = len(q_TNH), q_TNH.shape[1] // k_TGH.shape[1]
        frequency_F = rotary.frequencies(q_TNH.shape[2], 10_000.0)
        distance_TL = torch.tensor(
            [[distance(t, key) for key in range(T)] for t in range(T)], dtype=torch.float64
        )
        turn_TLF = torch.polar(torch.ones(()).double(), distance_TL[..., None] * frequency_F)
        q, k = (torch.complex(*x.chunk(2, -1)) for x in (q_TNH, k_TGH.repeat_interleave(each, 1)))
        score_NTL = torch.einsum("tnf,lnf,tlf->ntl", q, k.conj(), turn_TLF).real * self.specs[layer].scale
        hidden_TL = torch.ones(T, T, dtype=torch.bool).triu(1)
        share_NTL = score_NTL.masked_fill(hidden_TL, -torch.inf).softmax(-1)
        return torch.einsum("ntl,lnh->tnh", share_NTL, v_TGH.repeat_interleave(each, 1))


def distance(t: int, key: int) -> int:
    """From a query to a key."""
    apart = t // CHUNK - key // CHUNK
    if apart == 0:
        return t - key
    last = CHUNK + LOCAL
    return (min(t % CHUNK + CHUNK, last) if apart == 1 else last) - key % CHUNK


def dense(prompt: tuple[int, ...], count: int) -> list[int]:
    """What follows greedily, each token from the whole text anew."""
    tokens, made = list(prompt), decoder(Unturned())
    with torch.inference_mode():
        while len(tokens) < len(prompt) + count:
            hidden_TD = made.forward(batch_of(tokens), Twin(made.architecture))
            tokens.append(int(made.logits(hidden_TD[-1:]).argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("length", [3, 15, 16, 31, 34, 60])
def test_it_equals_dense_attention(length: int) -> None:
    """From one chunk to five; cut into spans of nine tokens."""
    made = engine()
    params = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True)
    made.add(Request(id="r", prompt=prompt(2, length), params=params))
    assert collect(made)["r", 0] == dense(prompt(2, length), 14)
    nothing_left(made)


def test_hidden_states_equal_dense_attention() -> None:
    """To the last digits, for every row of a prompt in one span."""
    tokens = [(3 * i * i) % models.VOCAB for i in range(80)]
    made, twin = engine(stack={"policy": "orca"}), decoder(Unturned())
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    made.add(Request(id="r", prompt=tuple(tokens), params=params))
    found = [p.logprob for delta in made.step() for p in delta.prompt_logprobs]
    with torch.inference_mode():
        logits_TV = twin.logits(twin.forward(batch_of(tokens), Twin(twin.architecture)))
    want_TV = logits_TV.log_softmax(-1)
    want = [float(want_TV[t, token]) for t, token in enumerate(tokens[1:])]
    assert max(abs(a - b) for a, b in zip(found, want, strict=True)) < 1e-10


@pytest.mark.parametrize("codec", ["plain", "kivi:group=16,residual=16", "kivi:group=16,residual=32"])
def test_tokens_do_not_depend_on_the_schedule(codec: str) -> None:
    """Chunks, prefix hits, forks, pauses; codecs of whole blocks."""
    stack = {"kv-codec": codec}
    spec = SPEC if "32" not in codec else "dca:chunk=32,local=9"
    alone = _run(engine(spec, stack={**stack, "policy": "orca"}, prefix_cache=False))
    cached = engine(spec, stack=stack)
    assert _run(cached) == alone and cached.counters.cached_tokens > 0
    tables = cached.kv.tables
    room = pages_for(tables.groups, tables.sizes, 92, 9) * tables.sizes.page_bytes
    swap = {"preempt": "swap", "swap_bytes": 1 << 20}
    for pressure in ({}, swap) if codec == "plain" else (swap,):
        tight = engine(spec, stack=stack, kv_bytes=room, context=92, **pressure)
        assert _run(tight) == alone and tight.counters.recomputes + tight.counters.swaps > 0


def _run(made: Engine) -> Outputs:
    found = scripted(made, asks(LENGTHS), []).outputs
    nothing_left(made)
    return found


def test_a_fork_goes_on_as_its_parent() -> None:
    made = engine()
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    request = Request(id="r", prompt=prompt(2, 40), params=params)
    found = scripted(made, [Ask(request)], [Fork("r", "f", 9, 1)])
    assert found.outputs["f", 0] == found.outputs["r", 0][found.forked_at["f"] :]


def test_up_to_one_chunk_nothing_changes() -> None:
    """Bit for bit."""
    tokens = [(3 * i * i) % models.VOCAB for i in range(48)]
    with torch.inference_mode():
        turned = [
            decoder(SLOT.make(spec)).forward(batch_of(tokens), DenseKV(models.decoder("full").architecture))
            for spec in ("dca:chunk=48", "rope")
        ]
    assert torch.equal(*turned)


def test_native_kernels_and_neighbours() -> None:
    """Packed weights, 8-bit keys and values, guesses."""
    stack = {
        "weights": "int4:group=32",
        "kv-codec": "int8",
        "drafter": "copyspec",
        "draft-budget": "fixed:tokens=3",
    }
    alone = _run(engine(stack={**stack, "policy": "orca"}, page_tokens=16, prefix_cache=False))
    assert _run(engine(stack=stack, page_tokens=16)) == alone


def test_layers_that_are_left_out() -> None:
    """A layer gets some rows of a batch, and what these read of far chunks."""
    skipper = "skipdecode:tokens=6"
    alone = _run(engine(skipper=skipper, stack={"policy": "orca"}, prefix_cache=False))
    assert _run(engine(skipper=skipper)) == alone
    assert alone != _run(engine())


@pytest.mark.parametrize(
    ("stack", "options", "match"),
    [
        ({"kv-keeper": "streaming"}, {}, "forget"),
        ({"shrinker": "gemfilter"}, {}, "far chunks"),
        ({}, {"page_tokens": 3}, "use chunk=18"),
        ({"kv-codec": "kivi:group=16,residual=32"}, {}, "use chunk=32"),
    ],
    ids=str,
)
def test_stacks_that_are_refused(stack: dict[str, str], options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        engine(stack=stack, **options)


@pytest.mark.parametrize("spec", ["dca", "dca:chunk=1", "dca:chunk=16,local=16", "dca:chunk=16,local=-1"])
def test_options_that_are_none(spec: str) -> None:
    with pytest.raises(ConfigError):
        SLOT.make(spec)
