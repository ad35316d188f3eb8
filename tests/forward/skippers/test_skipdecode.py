"""skipdecode: which layers a token runs through, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.forward.skippers import SLOT
from headrace.params import SamplingParams
from headrace.types import Request
from tests.models.dense_kv import DenseKV, batch_of
from tests.whole import models
from tests.whole.drive import collect, nothing_left


def depth(most: float, least: float, tokens: int, count: int, beyond: int) -> int:
    """As the paper has it: linear, from one budget to the other."""
    if beyond <= 0:
        return count
    share = least if beyond >= tokens else most + (least - most) * (beyond - 1) / max(1, tokens - 1)
    return max(1, int(share * count + 0.5))


@pytest.mark.parametrize(
    ("most", "least", "tokens", "warm", "count"),
    [
        (1.0, 0.5, 6, 1, 16),
        (0.75, 0.25, 40, 2, 16),
        (1.0, 0.125, 1, 1, 8),
        (0.5, 0.5, 9, 0, 4),
        (1.0, 1.0, 5, 1, 3),
    ],
)
def test_the_first_layers_run_and_the_last_ones(
    most: float, least: float, tokens: int, warm: int, count: int
) -> None:
    plain = models.decoder("full").architecture
    plain = dataclasses.replace(plain, blocks=plain.blocks[:1] * count)
    member = SLOT.make(f"skipdecode:most={most},least={least},tokens={tokens},warm={warm}")
    blocks = member.adapt(plain).blocks
    for beyond in range(-2, tokens + 20):
        runs = [i for i, block in enumerate(blocks) if block.reach is None or beyond <= block.reach]
        top = depth(most, least, tokens, count, beyond) - warm
        assert runs == [*range(warm), *range(count - top, count)], beyond


def test_tokens_are_those_of_the_layers_that_run() -> None:
    """One token at a time, through the layers that it may run through."""
    spec, prompt = "skipdecode:least=0.5,tokens=4", [(5 * k) % models.VOCAB for k in range(30)]
    made = Engine(
        EngineConfig(stack={"skipper": spec}, threads=1, page_tokens=4),
        decoder=models.decoder("full", spec),
        poison=True,
    )
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    made.add(Request(id="r", prompt=tuple(prompt), params=params))
    assert collect(made)["r", 0] == _dense(prompt, 12)
    nothing_left(made)


def _dense(prompt: list[int], count: int) -> list[int]:
    decoder, kv, tokens = models.decoder("full"), DenseKV(models.decoder("full").architecture), list(prompt)
    with torch.inference_mode():
        hidden_TD = decoder.forward(batch_of(tokens), kv)
        for beyond in range(1, count + 1):
            tokens.append(int(decoder.logits(hidden_TD[-1:]).argmax()))
            batch = batch_of(tokens[-1:], start=len(tokens) - 1)
            x_TD, turn = decoder.embed(batch.ids_T), decoder.rotaries[0].at(batch.positions_T)
            runs = (0, 1) if depth(1.0, 0.5, 4, 2, beyond) == 2 else (0,)
            for layer in runs:
                x_TD = decoder.blocks[layer](x_TD, turn, batch, kv)
            hidden_TD = decoder.norm(x_TD)
    return tokens[len(prompt) :]


def test_a_conversation_gives_the_same_with_a_prefix_cache() -> None:
    """The first answer is part of the second prompt, where it runs through every layer."""
    spec = "skipdecode:least=0.5,tokens=4"
    found = []
    for cache in (True, False):
        config = EngineConfig(stack={"skipper": spec}, threads=1, page_tokens=4, prefix_cache=cache)
        made = Engine(config, decoder=models.decoder("full", spec), poison=True)
        prompt = tuple((5 * k) % models.VOCAB for k in range(30))
        params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
        said = []
        for turn in range(2):
            made.add(Request(id=str(turn), prompt=prompt, params=params))
            said += collect(made)[str(turn), 0]
            prompt = (*prompt, *said, 3)
        found.append(said)
        assert made.counters.cached_tokens == (28 if cache else 0), "the first prompt, in whole pages"
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "spec",
    [
        "skipdecode:least=0",
        "skipdecode:most=0.4",
        "skipdecode:tokens=0",
        "skipdecode:most=1.1",
        "skipdecode:warm=-1",
    ],
)
def test_options_that_are_none(spec: str) -> None:
    with pytest.raises(ConfigError):
        SLOT.make(spec)


def test_more_warm_layers_than_may_run() -> None:
    with pytest.raises(ConfigError, match="lower warm or raise least"):
        SLOT.make("skipdecode:warm=2").adapt(models.decoder("full").architecture)


def test_codecs_of_whole_blocks_are_refused() -> None:
    config = EngineConfig(stack={"skipper": "skipdecode", "kv-codec": "kivi"}, threads=1)
    with pytest.raises(ConfigError, match="whole_blocks.*Nearest stack that runs"):
        Engine(config)
