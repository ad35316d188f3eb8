"""Runs requests through an engine: alone, or as a scripted schedule with arrivals, forks and cancels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from headrace.compose import parse
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.forward.decoder import Decoder
from headrace.kv.stored import cut, page_sizes, stored_groups
from headrace.kv.tiers import SLOT as TIERS
from headrace.params import SamplingParams
from headrace.types import Request
from tests.whole import models

Outputs = dict[tuple[str, int], list[int]]
"""(request id, sample) -> tokens."""


@dataclass(frozen=True)
class Ask:
    """A request, the step at which it arrives, and the step at which it is cancelled."""

    request: Request
    step: int = 0
    cancel: int | None = None


@dataclass(frozen=True)
class Fork:
    """At `step`, sample 0 of `parent` is forked as `id`."""

    parent: str
    id: str
    step: int
    seed: int


@dataclass
class Run:
    """What a schedule produced."""

    outputs: Outputs = field(default_factory=dict)
    forked_at: dict[str, int] = field(default_factory=dict)
    """Fork id -> tokens the parent had generated."""
    finished: set[tuple[str, int]] = field(default_factory=set)


def prompt(seed: int, length: int) -> tuple[int, ...]:
    """Prompts of one seed begin alike."""
    return tuple((7 * seed + 5 * k * k) % models.VOCAB for k in range(length))


def asks(lengths: tuple[int, ...]) -> list[Ask]:
    """One after the other, of two seeds, every other one with two samples."""
    return [
        Ask(
            Request(
                id=str(i),
                prompt=prompt(i % 2, length),
                params=SamplingParams(temperature=0.7, seed=i, n=1 + i % 2, max_tokens=20, ignore_eos=True),
                arrival=float(i),
            ),
            step=i,
        )
        for i, length in enumerate(lengths)
    ]


def alone(model: str, request: Request) -> Outputs:
    """Every sample of a request that has a roomy engine to itself: no chunks, no cache, no pauses."""
    request = replace(request, id="alone", priority=0, arrival=0.0)
    engine = plain(model)
    engine.add(request)
    return collect(engine)


def alone_forked(model: str, request: Request, generated: int, seed: int) -> list[int]:
    """What a fork yields that is taken after `generated` tokens, with nothing else in the engine."""
    engine = plain(model)
    engine.add(replace(request, id="parent", params=replace(request.params, n=1), priority=0, arrival=0.0))
    seen = 0
    while seen < generated:
        seen += sum(len(delta.tokens) for delta in engine.step())
    engine.fork("parent", "child", seed=seed)
    return collect(engine).get(("child", 0), [])


def plain(model: str) -> Engine:
    config = EngineConfig(
        stack={"policy": "orca", "kv-layout": "single", **models.stack(model)},
        prefix_cache=False,
        page_tokens=models.page_tokens(model)[-1],
        threads=1,
    )
    return Engine(config, decoder=models.decoder(model))


def collect(engine: Engine) -> Outputs:
    outputs: Outputs = {}
    while engine.busy:
        for delta in engine.step():
            outputs.setdefault((delta.request, delta.index), []).extend(delta.tokens)
    return outputs


def scripted(engine: Engine, asks: Iterable[Ask], forks: Iterable[Fork], max_steps: int = 3000) -> Run:
    """Runs a schedule to its end, checking every invariant of the cache after every step."""
    asks, forks, run, step = list(asks), list(forks), Run(), 0
    while engine.busy or any(ask.step >= step for ask in asks):
        assert step < max_steps, "the schedule does not end"
        for ask in asks:
            if ask.step == step:
                engine.add(ask.request)
            if ask.cancel == step:
                engine.cancel(ask.request.id)
        for fork in forks:
            if fork.step == step and _alive(engine, fork.parent):
                run.forked_at[fork.id] = len(run.outputs.get((fork.parent, 0), []))
                engine.fork(fork.parent, fork.id, seed=fork.seed)
        for delta in engine.step():
            key = (delta.request, delta.index)
            assert key not in run.finished, "a sample went on after its end"
            run.outputs.setdefault(key, []).extend(delta.tokens)
            if delta.finish_reason:
                run.finished.add(key)
        engine.kv.check()
        step += 1
    return run


def offloaded(
    config: EngineConfig, decoder: Decoder, pages: int, share: float = 0.0, folder: str = "/var/tmp"
) -> EngineConfig:
    """The config with a pool of `pages` on disk; in memory the least that they need, and a share of the rest."""
    chosen, dtype = parse(config.stack), decoder.dtype
    codec, selector = chosen.one("kv-codec"), chosen.one("kv-selector")
    layout, keeper = chosen.one("kv-layout").groups(decoder.architecture), chosen.one("kv-keeper")
    groups = stored_groups(layout, keeper, codec, TIERS.make("offload:memory=1"))
    sizes = page_sizes(groups, config.page_tokens, codec, dtype, selector)
    parts = cut(groups, sizes, codec, dtype, selector)
    least, most = pages * parts.least, pages * parts.page_bytes
    memory = min(most - 1, least + int(share * (most - least)))
    tier = f"offload:memory={memory},folder={folder}"
    return replace(config, stack={**config.stack, "kv-tier": tier}, kv_bytes=most)


def nothing_left(engine: Engine) -> None:
    """At the end no sequence, state, page or reference is left, once the cache is emptied."""
    assert len(engine.queues) == 0 and len(engine.sampler) == 0
    engine.close()
    engine.kv.check()
    stats = engine.stats()
    assert stats.free_pages == stats.pages, "a page was lost"
    host = engine.kv.tables.host
    assert host is None or host.num_free == len(host), "a host page was lost"


def _alive(engine: Engine, request: str) -> bool:
    return any(seq.request.id == request and seq.index == 0 for seq in engine.queues)


GREEDY = SamplingParams(temperature=0)
