"""lazyllm: which tokens run in which layer, and what they read there, against the obvious way over dense tensors."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.forward.decoder import Decoder
from headrace.forward.load import random
from headrace.forward.skippers import SLOT
from headrace.params import SamplingParams
from headrace.types import Pooling, Request
from tests.models.dense_kv import batch_of
from tests.weight import lora_folders
from tests.whole import models
from tests.whole import test_stacks as stacks
from tests.whole.drive import collect, nothing_left, scripted

PROMPT = [(11 * k * k + 5 * k) % models.VOCAB for k in range(40)]


def deep(layers: int = 6) -> Architecture:
    plain = models.decoder("full").architecture
    return dataclasses.replace(plain, blocks=plain.blocks[:1] * layers)


@functools.cache
def decoder(spec: str, layers: int = 6) -> Decoder:
    architecture = deep(layers)
    return random(SLOT.make(spec).adapt(architecture) if spec else architecture, 7, torch.float64)


def engine(spec: str, **options: object) -> Engine:
    stack = {"skipper": spec, **options.pop("stack", {})} if spec else options.pop("stack", {})  # type: ignore[dict-item]
    config = EngineConfig(stack=stack, threads=1, page_tokens=4, prefix_cache=False, **options)
    return Engine(config, decoder=decoder(spec), poison=True)


class Dense:
    """One sequence, and every token's state and key at every layer, or none: nothing is shared with the engine."""

    def __init__(self, made: Decoder, spec: str) -> None:
        self.made, self.member = made, SLOT.make(spec)
        self.floors = {
            layer: block.thinning.share
            for layer, block in enumerate(made.architecture.blocks)
            if block.thinning is not None
        }
        self.keys: list[dict[int, Tensor]] = [{} for _ in made.blocks]
        self.values: list[dict[int, Tensor]] = [{} for _ in made.blocks]
        self.states: list[dict[int, Tensor]] = [{} for _ in made.blocks]
        """Layer -> position -> what the token had before the layer."""
        self.stayed: list[set[int]] = [set() for _ in made.blocks]
        self.computed = 0

    def project(self, layer: int, position: int) -> tuple[Tensor, Tensor, Tensor]:
        block = self.made.blocks[layer]
        turn = self.made.rotaries[block.rotary].at(torch.tensor([position]))
        x_1D = self.states[layer][position][None]
        q, k, v = block.attention.project(block.attention_norm(x_1D), turn, batch_of([0]))
        return q[0], k[0], v[0]

    def weights(self, layer: int, q_NH: Tensor, seen: list[int]) -> Tensor:
        """[N, L]."""
        spec = self.made.architecture.blocks[layer].attention
        k_LNH = torch.stack([self.keys[layer][p] for p in seen]).repeat_interleave(
            spec.heads // spec.kv_heads, 1
        )
        return (torch.einsum("nh,lnh->nl", q_NH, k_LNH) * spec.scale).softmax(-1)

    def run(self, layer: int, position: int, others: set[int]) -> Tensor:
        """One token through one layer, where it sees these and itself. Returns its query."""
        block, spec = self.made.blocks[layer], self.made.architecture.blocks[layer].attention
        q_NH, self.keys[layer][position], self.values[layer][position] = self.project(layer, position)
        seen = sorted({p for p in others if p < position} | {position})
        v_LNH = torch.stack([self.values[layer][p] for p in seen]).repeat_interleave(
            spec.heads // spec.kv_heads, 1
        )
        out_NH = torch.einsum("nl,lnh->nh", self.weights(layer, q_NH, seen), v_LNH)
        x_1D = self.states[layer][position][None] + block.attention.out(out_NH.flatten()[None])
        x_1D = x_1D + block.mlp(block.mlp_norm(x_1D))
        self.computed += 1
        if layer + 1 < len(self.made.blocks):
            self.states[layer + 1][position] = x_1D[0]
        else:
            self.top = x_1D
        return q_NH

    def best(self, layer: int, q_NH: Tensor, prompt: int) -> list[int]:
        """Positions of the prompt, the most attended first."""
        seen = sorted(self.keys[layer])
        share_L = self.weights(layer, q_NH, seen).mean(0).tolist()
        order = sorted(zip(seen, share_L, strict=True), key=lambda pair: -pair[1])
        return [position for position, _ in order if position < prompt]

    def read(self, tokens: list[int]) -> Tensor:
        """The prompt: logits of what follows."""
        q_NH = torch.empty(0)
        here = list(range(len(tokens)))
        for position, x_D in enumerate(self.made.embed(torch.tensor(tokens))):
            self.states[0][position] = x_D
        for layer in range(len(self.made.blocks)):
            if layer in self.floors:
                stay = max(1, round(self.floors[layer] * len(tokens)))
                best = [p for p in self.best(layer - 1, q_NH, len(tokens)) if p != here[-1]]
                here = sorted([*best[: stay - 1], here[-1]])
            self.stayed[layer] = set(here)
            for position in here:
                q_NH = self.run(layer, position, set(here))
        return self.made.logits(self.made.norm(self.top))[0]

    def follow(self, token: int, position: int, prompt: int) -> Tensor:
        """A token after it."""
        q_NH, called = torch.empty(0), list[int]()
        self.states[0][position] = self.made.embed(torch.tensor([token]))[0]
        for layer in range(len(self.made.blocks)):
            if layer in self.floors:
                chosen = self.best(layer - 1, q_NH, prompt)[: len(self.stayed[layer])]
                missing = [p for p in chosen if p not in self.keys[layer]]
                called = missing[: self.member.returns]
            for back in sorted(called):
                self.run(layer, back, self.stayed[layer])
            q_NH = self.run(layer, position, set(self.keys[layer]))
        return self.made.logits(self.made.norm(self.top))[0]

    def decode(self, prompt: list[int], count: int) -> tuple[list[int], list[Tensor]]:
        with torch.inference_mode():
            logits = [self.read(prompt)]
            tokens = [int(logits[-1].argmax())]
            while len(tokens) < count:
                position = len(prompt) + len(tokens) - 1
                logits.append(self.follow(tokens[-1], position, len(prompt)))
                tokens.append(int(logits[-1].argmax()))
        return tokens, logits


def watched(made: Engine, prompt: list[int], count: int) -> tuple[list[int], list[Tensor]]:
    """Tokens, and the logits that they were chosen from."""
    logits: list[Tensor] = []
    forward = made.runner.forward

    def watch(batch):
        found = forward(batch)
        logits.extend(found.logits_RV.clone())
        return found

    made.runner.forward = watch  # type: ignore[method-assign]
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    made.add(Request(id="r", prompt=tuple(prompt), params=params))
    tokens = collect(made)["r", 0]
    nothing_left(made)
    return tokens, logits


@pytest.mark.parametrize("policy", ["orca", "sarathi:idle=7"])
@pytest.mark.parametrize("returns", [0, 2, 100])
def test_tokens_and_logits_are_the_obvious_ones(returns: int, policy: str) -> None:
    spec = f"lazyllm:keep=0.3,steps=2,first=0.34,returns={returns},shortest=1"
    dense = Dense(decoder(spec), spec)
    want, expected = dense.decode(PROMPT, 12)
    got, logits = watched(engine(spec, stack={"policy": policy}), PROMPT, 12)
    assert got == want
    torch.testing.assert_close(torch.stack(logits), torch.stack(expected), rtol=1e-9, atol=1e-9)
    had = [len(keys) for keys in dense.keys]
    assert had[:2] == [51, 51] and had[2] == had[3] >= had[4] == had[5]
    assert had[2:] == [37, 37, 23, 23] if returns == 0 else had[4] > 30, "26 and 12 of 40 stay, and 11 follow"


def test_the_last_token_stays_whatever_it_attends_to() -> None:
    spec = "lazyllm:keep=0.01,steps=2,first=0.34,returns=3,shortest=1"
    dense = Dense(decoder(spec), spec)
    want, expected = dense.decode(PROMPT, 8)
    got, logits = watched(engine(spec), PROMPT, 8)
    assert got == want and dense.stayed[5] == {39}
    torch.testing.assert_close(torch.stack(logits), torch.stack(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("policy", ["orca", "sarathi:tokens=5,idle=9"])
@pytest.mark.parametrize("model", ["full", "int4"])
def test_who_keeps_everybody_is_the_plain_engine(model: str, policy: str) -> None:
    """Bit for bit where kernels promise it, though rows are parked, chosen, and placed anew."""
    found = []
    for spec in ("lazyllm:keep=1,steps=1,first=0.5,shortest=1", ""):
        stack = {"policy": policy, **models.stack(model), **({"skipper": spec} if spec else {})}
        config = EngineConfig(stack=stack, threads=1, page_tokens=16, prefix_cache=False)
        made = Engine(config, decoder=models.decoder(model, spec), poison=True)
        found.append(watched(made, PROMPT, 20))
    (tokens, logits), (plain, expected) = found
    assert tokens == plain
    if model in models.NATIVE:
        assert torch.equal(torch.stack(logits), torch.stack(expected))
    torch.testing.assert_close(torch.stack(logits), torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_what_left_is_not_computed() -> None:
    """Rows that each layer is handed, as the MLPs count them."""
    spec = "lazyllm:keep=0.3,steps=2,first=0.34,returns=3,shortest=1"
    made, dense = engine(spec), Dense(decoder(spec), spec)
    dense.decode(PROMPT, 9)
    counts, kept = [0] * 6, [block.mlp for block in made.decoder.blocks]

    def counted(layer: int, mlp):
        def run(x_TD, *rest):
            counts[layer] += len(x_TD)
            return mlp(x_TD, *rest)

        return run

    try:
        for layer, block in enumerate(made.decoder.blocks):
            block.mlp = counted(layer, kept[layer])
        watched(made, PROMPT, 9)
    finally:
        for block, mlp in zip(made.decoder.blocks, kept, strict=True):
            block.mlp = mlp
    assert counts == [len(keys) for keys in dense.keys] and sum(counts) == dense.computed < 6 * 48


def test_random_schedules_with_neighbours() -> None:
    """Chunks, forks, cancels, pauses and guesses: tokens are those that a request gets alone."""
    happened: Counter[str] = Counter()
    for seed in range(40):
        draw = Random(seed)
        spec = draw.choice(
            ["lazyllm:keep=0.3,steps=1,first=0.5,returns=3,shortest=9", "lazyllm:keep=0.5,steps=1"]
        )
        drawn = {
            "skipper": spec,
            "kv-codec": draw.choice(["plain", "int8"]),
            "policy": draw.choice(["orca", "sarathi:tokens=3,idle=7", "sarathi:tokens=16,idle=16"]),
            "drafter": draw.choice(["", "copyspec:gamma=1", "copyspec:gamma=2,length=3"]),
            "draft-budget": "fixed:tokens=3",
            "shrinker": draw.choice(["", "", "gemfilter:keep=20,last=2,layer=1"]),
        }
        _, config, asks, forks = stacks.make(seed)
        config = dataclasses.replace(
            config, stack={name: chosen for name, chosen in drawn.items() if chosen}, prefix_cache=False
        )
        made = Engine(stacks.tight(config, "full", asks), decoder=models.decoder("full", spec), poison=True)
        found = scripted(made, asks, forks)
        law = {name: chosen for name, chosen in config.stack.items() if name in stacks.SEEN}
        for ask in asks:
            stacks.check("full", law, config.page_tokens, ask, found.outputs, found.finished)
        nothing_left(made)
        happened["pauses"] += made.counters.recomputes + made.counters.swaps
        happened["right"] += made.counters.accepted_tokens
        happened["wrong"] += made.counters.drafted_tokens - made.counters.accepted_tokens
        happened["forks"] += len(found.forked_at)
    assert all(happened[name] > 3 for name in ("pauses", "right", "wrong", "forks")), happened


def test_a_fork_goes_on_as_its_parent_would() -> None:
    """It computes what it has in common with it again, and comes to the same."""
    spec = "lazyllm:keep=0.3,steps=2,first=0.34,returns=2,shortest=1"
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    made = engine(spec, stack={"policy": "sarathi:tokens=5,idle=9"})
    made.add(Request(id="r", prompt=tuple(PROMPT), params=params))
    tokens: dict[str, list[int]] = {"r": [], "f": []}
    while made.busy:
        for delta in made.step():
            tokens[delta.request] += delta.tokens
        if len(tokens["r"]) == 7 and not tokens["f"] and len(made.queues) == 1:
            made.fork("r", "f")
    assert tokens["f"] == tokens["r"][7:] and len(tokens["r"]) == 20


def test_adapters_stay_with_their_sequences(tmp_path: Path) -> None:
    """Rows that were parked run with the adapter of their sequence."""
    spec = "lazyllm:keep=0.3,steps=2,first=0.34,returns=2,shortest=9"
    folder = str(lora_folders.write(tmp_path / "wide", deep(), 64, 3, lora_alpha=48))
    params = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True)
    prompts = {"a": PROMPT, "b": PROMPT[:6], "c": PROMPT[3:], "d": PROMPT[5:]}
    asks = [
        Request(
            id=name, prompt=tuple(prompt), params=params, adapter="wide" if name in "bcd" else "", arrival=i
        )
        for i, (name, prompt) in enumerate(prompts.items())
    ]
    together, alone, kept = {}, {}, []
    for batch in (asks, *([ask] for ask in asks)):
        made = engine(spec, stack={"policy": "sarathi:tokens=5,idle=9"}, adapters={"wide": folder})
        for ask in batch:
            made.add(ask)
        found = collect(made)
        (together if len(batch) > 1 else alone).update(found)
    assert together == alone
    for chosen in ("lazyllm:keep=1,steps=2,first=0.34,shortest=1", ""):
        made = engine(chosen, adapters={"wide": folder})
        for ask in asks:
            made.add(ask)
        kept.append(collect(made))
    assert kept[0] == kept[1], "in every layer"


@pytest.mark.parametrize("request_of", ["short", "scored", "pooled"])
def test_prompts_that_stay_whole(request_of: str) -> None:
    """Short ones, and those that are asked about themselves."""
    shortest = 41 if request_of == "short" else 1
    spec = f"lazyllm:keep=0.2,steps=2,first=0.34,shortest={shortest}"
    found = []
    for chosen in (spec, ""):
        made = engine(chosen, stack={"policy": "sarathi:tokens=5,idle=11"})
        pooling = Pooling(kind="mean") if request_of == "pooled" else None
        params = SamplingParams(
            temperature=0, max_tokens=9, prompt_logprobs=1 if request_of == "scored" else None
        )
        params = SamplingParams() if pooling else params
        made.add(Request(id="r", prompt=tuple(PROMPT), params=params, pooling=pooling))
        deltas = []
        while made.busy:
            deltas += made.step()
        found.append([(d.tokens, d.prompt_logprobs, d.embedding) for d in deltas])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "spec",
    ["lazyllm:keep=0", "lazyllm:keep=1.1", "lazyllm:first=0", "lazyllm:first=1", "lazyllm:steps=0"]
    + ["lazyllm:returns=-1", "lazyllm:shortest=0"],
)
def test_options_that_are_none(spec: str) -> None:
    with pytest.raises(ConfigError):
        SLOT.make(spec)


def test_more_steps_than_layers() -> None:
    with pytest.raises(ConfigError, match="lower steps or first"):
        SLOT.make("lazyllm:steps=2").adapt(models.decoder("full").architecture)


def test_where_tokens_leave() -> None:
    blocks = SLOT.make("lazyllm:keep=0.4,steps=3,first=0.3").adapt(deep(16)).blocks
    found = {i: block.thinning.share for i, block in enumerate(blocks) if block.thinning is not None}
    assert found == pytest.approx({5: 0.8, 8: 0.6, 12: 0.4})


@pytest.mark.parametrize(
    "stack",
    [
        {"kv-codec": "kivi"},
        {"kv-keeper": "streaming"},
        {"drafter": "recycle"},
        {"kv-selector": "landmarks"},
        {"positions": "dca:chunk=64"},
    ],
)
def test_what_it_cannot_run_with(stack: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="cannot run with.*Nearest stack that runs"):
        Engine(EngineConfig(stack={"skipper": "lazyllm", **stack}, threads=1, prefix_cache=False))


def test_a_prefix_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match="prefix_cache.*--no-prefix-cache"):
        Engine(EngineConfig(stack={"skipper": "lazyllm"}, threads=1))
