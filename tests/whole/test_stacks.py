"""Random stacks: each runs a schedule with every invariant intact, or is refused with a reason and a way out; where the
way out is another stack, that one runs.

A stack of exact members gives the tokens of the plain engine; one whose codec is lossy, those of the same codec alone.
"""

from __future__ import annotations

import dataclasses
import random
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from headrace.compose import compose, user_slots
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ClashError, ConfigError
from headrace.forward import neurons
from headrace.forward.decoder import Decoder
from headrace.forward.memory import pages_for
from headrace.forward.neurons import STEPS
from headrace.kv.heads import write_profile
from headrace.params import SamplingParams
from headrace.slots import Slot
from headrace.types import Request
from tests.speculate.test_draft_model import second
from tests.whole import models
from tests.whole.drive import Ask, Fork, Outputs, alone, nothing_left, offloaded, scripted

OPTIONS = {
    "policy": ["sarathi:tokens=3,idle=7", "sarathi:tokens=16,idle=16"],
    "kv-codec": [
        "kivi:group=16,residual=16",
        "kivi:bits=2,group=16,residual=32",
        models.with_file("kvquant:bits=2"),
    ],
    "drafter": [
        "copyspec:gamma=1",
        "copyspec:gamma=2,length=3",
        "draft_model:model=mixed,length=3",
        "draft_tree:model=mixed,branching=2.1",
        "",
    ],
    "verifier": ["sample_match"] * 8,  # the others are refused with most drafters
    "draft-budget": ["fixed:tokens=3", "auto:retry=2"],
    "processors": [
        "temperature+top_p",
        "penalties+temperature+top_k+top_p+min_p",
        "penalties+logit_bias+allowed_tokens+bad_words+min_tokens+temperature+top_k+top_p+min_p+mirostat:target=2",
    ],
    "weights": ["plain"],  # others keep what they hold in float32, and these models are float64
}
"""Specs beside the bare names of the index."""
_FOLDER = tempfile.TemporaryDirectory(prefix="headrace-test-stacks-")  # of this process, until it ends
PROFILE, NEURONS = Path(_FOLDER.name) / "heads.json", Path(_FOLDER.name) / "neurons.json"
OPTIONS["skipper"] = [
    f"cats:profile={NEURONS},sparsity=0.4",
    "skipdecode:tokens=5",
    "lazyllm:keep=0.4,steps=1,first=0.5,returns=2,shortest=9",
    *[""] * 9,
]
OPTIONS["shrinker"] = ["gemfilter:keep=9,last=2,layer=1", "gemfilter:keep=30,layer=1", ""]
OPTIONS["kv-layout"] = [
    *[f"duo:profile={PROFILE},share=0.5,sink=2,window=8"] * 3,
    f"razor:profile={PROFILE},share=0.5,sink=0,window=16,block=16",
]
OPTIONS["kv-keeper"] = [
    *["streaming:sink=3,window=10", "streaming:sink=0,window=30", "everything"] * 2,
    "d2o:heavy=4,window=16,sink=0,block=16",
]
OPTIONS["kv-selector"] = [
    "landmarks:share=0.3,least=4,sink=2,recent=4,dense=0",
    "landmarks:share=0,least=9,sink=0,recent=1,dense=1",
    "squeezed:share=0.4,clusters=3,least=4,sink=0,recent=3",
    "vslash:vertical=4,slash=4,sink=2,recent=3,rows=8,spared=8",
    *[""] * 14,  # the others are often refused
]
OPTIONS["switcher"] = [
    "ead:model=mixed,threshold=2.6,window=2,least=2",
    "ead:model=two_windows,threshold=2.8,window=1,least=1",
    *[""] * 6,
]
OPTIONS["kv-tier"] = [
    "host:size=9KiB",
    f"disk:size=64KiB,stage=9KiB,folder={_FOLDER.name}",
    f"disk:size=1MiB,stage=64KiB,folder={_FOLDER.name}",
    *[f"offload:memory=1,folder={_FOLDER.name}"] * 2,  # see tight
    *[""] * 2,
]
OPTIONS["weight-tier"] = ["window:bytes=24K", "window:bytes=32K"]  # of models whose blocks take 40K
NEEDING = set("draft_model draft_tree duo kvquant razor d2o cats ead disk offload window".split())
"""Members that are not there by their bare names: they need a file, or sizes that fit these models."""
SEEN = ("kv-codec", "kv-layout", "kv-keeper", "kv-selector", "skipper", "shrinker", "processors", "switcher")
"""Slots whose members may change tokens."""
LEFT_ALONE = ("positions", "grammar")
"""Slots that the model decides, or that need a tokenizer."""


def specs(slot: Slot) -> list[str]:
    if slot.name in ("weights", "processors"):
        return OPTIONS[slot.name]
    return [*OPTIONS.get(slot.name, []), *(name for name in slot.index if name not in NEEDING)]


def make(seed: int) -> tuple[str, EngineConfig, list[Ask], list[Fork]]:
    draw = random.Random(seed)
    stack = {
        name: draw.choice(specs(slot))
        for name, slot in user_slots().items()
        if name not in LEFT_ALONE and draw.random() < 0.7
    }
    offload = stack.get("kv-tier", "").startswith("offload") and draw.random() < 0.95
    config = EngineConfig(
        stack={name: spec for name, spec in stack.items() if spec},
        page_tokens=draw.choice([1, 2, 4, 8, 16, 3]),
        preempt=draw.choice(["recompute", "swap"]) if not offload else "recompute",
        swap_bytes=1 << 20,
        prefix_cache=draw.random() < (0.95 if stack.get("kv-tier") else 0.7),
        max_seqs=draw.choice([64, 64, 2]),
        threads=1,
    )
    asks = [
        Ask(
            Request(
                id=f"r{i}",
                prompt=tuple(draw.randrange(5) for _ in range(draw.choice([1, 9, 17, 40]))),
                params=SamplingParams(
                    temperature=draw.choice([0, 0.8]),
                    seed=draw.randrange(9),
                    max_tokens=draw.choice([4, 20]),
                    ignore_eos=True,
                ),
                arrival=float(i),
            ),
            step=draw.randrange(6),
            cancel=draw.choice([None, None, None, 9]),
        )
        for i in range(draw.choice([1, 4, 6]))
    ]
    forks = [Fork(draw.choice(asks).request.id, "f", draw.randrange(12), 1)] if draw.random() < 0.5 else []
    return draw.choice(["full"] if offload else sorted(models.WINDOWS)), config, asks, forks


def tight(config: EngineConfig, model: str, asks: list[Ask]) -> EngineConfig:
    """With a pool that hardly holds more than the longest request, and of one on disk little in memory."""
    made, offload = decoder(model, config.stack), config.stack.get("kv-tier", "").startswith("offload")
    if offload:
        compose(config, made.architecture.facts())
        config = dataclasses.replace(config, stack={k: v for k, v in config.stack.items() if k != "kv-tier"})
    engine = Engine(config, decoder=made)
    tables = engine.kv.tables
    longest = max(len(a.request.prompt) + (a.request.params.max_tokens or 0) for a in asks)
    pages = pages_for(tables.groups, tables.sizes, longest, engine.policy.longest_span)
    pages = max(pages, 2 * len(tables.groups))
    if offload:
        return offloaded(config, made, pages, 0.1, _FOLDER.name)
    return dataclasses.replace(config, kv_bytes=pages * tables.sizes.page_bytes)


def decoder(model: str, stack: Mapping[str, str]) -> Decoder:
    return models.decoder(model, stack.get("skipper", ""), stack.get("weight-tier", "memory"))


def advised(config: EngineConfig, refusal: str) -> EngineConfig | None:
    """The stack that a refusal names instead."""
    found = re.search(r"Nearest stack that runs: (no )?--(\S+) ?(.*)\.$", refusal)
    if not found:
        assert any(word in refusal for word in ("use ", "write ", "lower", "raise", "start from")), refusal
        return None
    without, name, spec = found.groups()
    if name == "no-prefix-cache":
        return dataclasses.replace(config, prefix_cache=False)
    if name == "preempt":
        return dataclasses.replace(config, preempt="recompute")
    others = {slot: member for slot, member in config.stack.items() if slot != name}
    return dataclasses.replace(config, stack=others if without else {**others, name: spec})


def start(
    config: EngineConfig, model: str, asks: list[Ask], happened: Counter[str]
) -> tuple[EngineConfig, Engine] | None:
    """With the stack, or the one that its refusal names; None if it is refused."""

    def built(config: EngineConfig) -> Engine:
        return Engine(tight(config, model, asks), decoder=decoder(model, config.stack), poison=True)

    try:
        return config, built(config)
    except ConfigError as error:
        refusal = str(error)
    happened["refused"] += 1
    assert "\n" not in refusal and len(refusal) > 20
    other = advised(config, refusal)
    if other is None:
        return None
    try:
        engine = built(other)
    except ClashError as clash:
        raise AssertionError(f"{refusal} And then: {clash}") from clash
    except ConfigError:  # a size of the member that was named does not fit these little pages
        return None
    happened["advised"] += 1
    return other, engine


def run(seed: int, happened: Counter[str]) -> None:
    model, config, asks, forks = make(seed)
    started = start(config, model, asks, happened)
    if started is None:
        return
    config, engine = started
    outputs = scripted(engine, asks, forks)
    happened["runs"] += 1
    happened["pauses"] += engine.counters.recomputes + engine.counters.swaps
    happened["drafts"] += engine.counters.drafted_tokens
    happened["switches"] += engine.counters.switches
    happened["promotions"] += engine.stats().counters.promoted_pages
    if engine.kv.tables.pool.residence is not None:
        happened["fetches"] += engine.stats().counters.tier_read_bytes > 0
    law = {name: spec for name, spec in config.stack.items() if name in SEEN}
    # drawn tokens depend on what was guessed
    likeliest_only = engine.stack.one("verifier").card.exact == "law"
    if "mirostat" not in law.get("processors", ""):
        for ask in (a for a in asks if a.request.params.temperature == 0 or not likeliest_only):
            check(model, law, config.page_tokens, ask, outputs.outputs, outputs.finished)
    nothing_left(engine)


def check(
    model: str,
    law: dict[str, str],
    page_tokens: int,
    ask: Ask,
    outputs: Outputs,
    finished: set[tuple[str, int]],
) -> None:
    """The request's tokens are those that it gets alone, from the codec and the processors of the stack."""
    if not law:
        expected = alone(model, ask.request)["alone", 0]
    else:
        config = EngineConfig(
            stack={"policy": "orca", **law}, prefix_cache=False, page_tokens=page_tokens, threads=1
        )
        engine = Engine(config, decoder=decoder(model, law))
        engine.add(ask.request)
        expected = []
        while engine.busy:
            expected += [token for delta in engine.step() for token in delta.tokens]
    got = outputs.get((ask.request.id, 0), [])
    assert got == (expected if (ask.request.id, 0) in finished else expected[: len(got)]), ask.request.id


@pytest.fixture(autouse=True)
def second_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_open", lambda self, name: second(name))


@pytest.fixture(autouse=True)
def profile() -> None:
    architecture, steps = models.decoder("full").architecture, [i / STEPS for i in range(STEPS + 1)]
    write_profile(PROFILE, architecture, [[0.1, 0.9], [0.8, 0.2]])
    neurons.write_profile(NEURONS, architecture, [steps, steps])


def test_random_stacks() -> None:
    happened: Counter[str] = Counter()
    for seed in range(160):
        try:
            run(seed, happened)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {make(seed)[1].stack}: {error}") from error
    assert happened["runs"] > 100 and happened["pauses"] > 8 and happened["drafts"] > 500, happened
    assert happened["refused"] > 5 and happened["advised"] > 10 and happened["switches"] > 50, happened
    assert happened["promotions"] > 3 and happened["fetches"] > 3, happened


@pytest.mark.slow
def test_two_thousand_random_stacks() -> None:
    happened: Counter[str] = Counter()
    for seed in range(1000, 3000):
        run(seed, happened)
    assert happened["runs"] > 1300 and happened["advised"] > 300, happened
