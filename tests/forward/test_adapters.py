"""Adapters through the whole engine: a request gets the tokens of the merged model, whatever runs beside it."""

from __future__ import annotations

import functools
import math
import random
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch

from headrace import kernels
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.forward import adapters as module
from headrace.forward import recording
from headrace.types import Request, SamplingParams, Status
from tests.sample import test_drafts as drafts
from tests.weight import lora_folders, s2ft_folders
from tests.whole import models
from tests.whole.drafting import plan_by
from tests.whole.drive import Ask, Fork, Outputs, collect, nothing_left, scripted

GREEDY = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True)
PROMPTS = [tuple((7 * i + 3) % models.VOCAB for i in range(n)) for n in (19, 5, 33, 24)]
ADAPTERS = {  # rank, further settings
    "thin": (1, {"modules": ("q_proj", "v_proj")}),
    "plain": (5, {"lora_alpha": 8}),
    "stabilised": (16, {"use_rslora": True, "lora_alpha": 2}),
    "wide": (64, {"lora_alpha": 48}),
}
SLICED, SLICED_SEED = "sliced", 11
"""The adapter that is no LoRA."""
NAMES = (*ADAPTERS, SLICED)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One folder per adapter, for the models of tests/whole whose layers are all of one shape."""
    found = {}
    for model in ("full", "int4"):
        architecture = models.decoder(model).architecture
        for seed, (name, (rank, options)) in enumerate(ADAPTERS.items()):
            folder = tmp_path_factory.mktemp(model) / name
            found[f"{model}-{name}"] = str(lora_folders.write(folder, architecture, rank, seed, **options))
        folder = tmp_path_factory.mktemp(model) / SLICED
        found[f"{model}-{SLICED}"] = str(s2ft_folders.write(folder, architecture, SLICED_SEED))
    return found


def engine(model: str, folders: dict[str, str], **options: object) -> Engine:
    named = {n.partition("-")[2]: f for n, f in folders.items() if n.startswith(f"{_shape(model)}-")}
    stack = {**models.stack(model), "policy": "sarathi:tokens=8,idle=12", **options.pop("stack", {})}
    sizes = {"page_tokens": models.page_tokens(model)[-1], "threads": 1, **options}
    return Engine(
        EngineConfig(stack=stack, adapters=named, **sizes), decoder=models.decoder(model), poison=True
    )


def _shape(model: str) -> str:
    return "int4" if model in models.NATIVE else "full"


def ask(name: str, prompt: tuple[int, ...], adapter: str, params: SamplingParams = GREEDY, **more) -> Request:
    return Request(id=name, prompt=prompt, params=params, adapter=adapter, **more)


def everybody() -> list[Request]:
    """Every prompt with every adapter and with none."""
    return [
        ask(f"{name}-{i}", prompt, name, arrival=float(i))
        for i, prompt in enumerate(PROMPTS)
        for name in ("", *NAMES)
    ]


@functools.cache
def merged_tokens(model: str, adapter: str, prompt: tuple[int, ...]) -> list[int]:
    """Of the model that the adapter was merged into, with nothing else in the engine."""
    architecture = models.decoder(model).architecture
    seed = sum(map(ord, model))
    if adapter == SLICED:
        decoder = lora_folders.changed(architecture, seed, s2ft_folders.changes(architecture, SLICED_SEED))
    elif adapter:
        rank, options = ADAPTERS[adapter]
        index = list(ADAPTERS).index(adapter)
        given = {"modules": options["modules"]} if "modules" in options else {}
        found = lora_folders.tensors(architecture, rank, index, **given)
        alpha = options.get("lora_alpha", rank)
        scale = alpha / (math.sqrt(rank) if options.get("use_rslora") else rank)
        decoder = lora_folders.merged(architecture, seed, found, scale)
    else:
        decoder = models.decoder(model)
    config = EngineConfig(stack={"policy": "orca"}, prefix_cache=False, threads=1)
    made = Engine(config, decoder=decoder)
    made.add(Request(id="m", prompt=prompt, params=GREEDY))
    return collect(made)["m", 0]


@pytest.mark.parametrize("model", ["full", "mixed"])
def test_tokens_are_those_of_the_merged_model(model: str, folders: dict[str, str]) -> None:
    """All at once, chunked, with a prefix cache, in a roomy pool."""
    made = engine(model, folders)
    for request in everybody():
        made.add(request)
    outputs = collect(made)
    for request in everybody():
        want = merged_tokens(model, request.adapter, request.prompt)
        assert outputs[request.id, 0] == want, request.id
    by_adapter = {name: tuple(outputs[f"{name}-0", 0]) for name in ("", *NAMES)}
    assert len(set(by_adapter.values())) == len(by_adapter), "an adapter changes nothing"
    nothing_left(made)


def alone(model: str, folders: dict[str, str], request: Request) -> list[int]:
    made = engine(model, folders, prefix_cache=False, stack={"policy": "orca"})
    made.add(request)
    return collect(made)[request.id, 0]


@pytest.mark.skipif(kernels.isa() == kernels.REFERENCE, reason="PyTorch rounds a row by what is beside it")
@pytest.mark.parametrize("model", ["int4", "int8_windows", "bf16"])
def test_native_kernels_give_the_same_tokens_in_any_batch(model: str, folders: dict[str, str]) -> None:
    """Quantised weights: bits, not closeness; those of the base model are the ones without any adapter."""
    made = engine(model, folders)
    for request in everybody():
        made.add(request)
    outputs = collect(made)
    for request in everybody()[: 2 * (1 + len(NAMES))]:
        assert outputs[request.id, 0] == alone(model, folders, request), request.id
    base = engine(model, {})
    for request in everybody()[:: 1 + len(NAMES)]:
        base.add(request)
    assert all(outputs[key] == tokens for key, tokens in collect(base).items())


@pytest.mark.parametrize("preempt", ["recompute", "swap"])
def test_paused_sequences_go_on_as_before(preempt: str, folders: dict[str, str]) -> None:
    page = engine("full", {}, page_tokens=2).kv.tables.sizes.page_bytes
    swap = {"swap_bytes": 80 * page} if preempt == "swap" else {}
    made = engine("full", folders, preempt=preempt, kv_bytes=30 * page, page_tokens=2, **swap)
    for request in everybody():
        made.add(request)
    outputs = {}
    while made.busy:
        for delta in made.step():
            outputs.setdefault(delta.request, []).extend(delta.tokens)
        made.kv.check()
    assert made.counters.recomputes + made.counters.swaps > 5, "nobody was paused"
    for request in everybody():
        assert outputs[request.id] == merged_tokens("full", request.adapter, request.prompt), request.id
    nothing_left(made)


def test_prefixes_are_shared_within_an_adapter_and_never_between_two(folders: dict[str, str]) -> None:
    made = engine("full", folders)
    for turn, adapter in enumerate(("", "plain", "wide", "plain", "")):
        made.add(ask(f"r{turn}", PROMPTS[2], adapter))
        before = made.counters.cached_tokens
        assert collect(made)[f"r{turn}", 0] == merged_tokens("full", adapter, PROMPTS[2])
        assert (made.counters.cached_tokens > before) == (turn >= 3), adapter
    digest = made.adapters.find("plain").digest
    for salt in (digest, f"{digest}:", f":{digest}"):  # a tenant cannot name another namespace
        made.add(ask("salted", PROMPTS[2], "", salt=salt))
        before = made.counters.cached_tokens
        collect(made)
        assert made.counters.cached_tokens == before


def test_samples_and_forks_keep_the_adapter(folders: dict[str, str]) -> None:
    made, other = engine("full", folders), engine("full", folders)
    params = SamplingParams(temperature=0.9, seed=4, n=3, max_tokens=12, ignore_eos=True)
    made.add(ask("three", PROMPTS[0], "wide", params))
    made.add(ask("beside", PROMPTS[0], "", params))
    other.add(ask("three", PROMPTS[0], "wide", params))
    together, apart = collect(made), collect(other)
    assert {key: together[key] for key in apart} == apart
    assert together["three", 0] != together["beside", 0]

    made.add(ask("parent", PROMPTS[1], "plain"))
    while not made.stats().counters.generated_tokens or made.queues.count(Status.RUNNING) < 1:
        made.step()
    made.adapters.forget("plain")
    made.fork("parent", "child", seed=1)
    found = collect(made)
    child = found["child", 0]
    assert child == merged_tokens("full", "plain", PROMPTS[1])[-len(child) :]
    with pytest.raises(ConfigError, match="no adapter called 'plain'"):
        made.add(ask("late", PROMPTS[1], "plain"))


@pytest.mark.parametrize("guess", ["right", "now-and-then"])
def test_drafts_change_nothing(guess: str, folders: dict[str, str]) -> None:
    def run(made: Engine) -> drafts.Answers:
        for i, (prompt, adapter) in enumerate(zip(PROMPTS, ("", "wide", "plain", "wide"), strict=True)):
            made.add(ask(f"r{i}", prompt, adapter, arrival=float(i)))
        answers: drafts.Answers = {}
        while made.busy:
            for delta in made.step():
                answers.setdefault((delta.request, delta.index), []).append(delta)
            made.kv.tables.check()
        return answers

    truth = run(engine("mixed", folders))
    drafted = engine("mixed", folders)
    plan_by(drafted, drafts.Guessing(drafted.policy, drafted, truth, drafts.GUESSES[guess]))
    assert drafts.tokens(run(drafted)) == drafts.tokens(truth)


def test_a_wide_batch_is_cut_by_rows(monkeypatch: pytest.MonkeyPatch, folders: dict[str, str]) -> None:
    """The MLP runs some rows at a time: each block knows its own adapters."""
    monkeypatch.setattr("headrace.layer.mlp.ROWS", 7)
    made = engine("full", folders, stack={"policy": "orca"})
    for request in everybody():
        made.add(request)
    outputs = collect(made)
    for request in everybody():
        assert outputs[request.id, 0] == merged_tokens("full", request.adapter, request.prompt), request.id


def schedule(draw: random.Random) -> tuple[dict[str, object], list[Ask], list[Fork]]:
    """Six requests that come, fork and go, in a pool and beside adapters' memory that are too small for them."""
    page = engine("full", {}, page_tokens=2).kv.tables.sizes.page_bytes
    options = {
        "page_tokens": 2,
        "kv_bytes": draw.choice((26, 40, 90)) * page,
        "max_seqs": draw.choice((2, 3, 64)),
        "prefix_cache": draw.random() < 0.7,
        "adapter_bytes": draw.choice((590_000, 640_000, 1 << 20)),
        "preempt": draw.choice(("swap", "recompute")),
    }
    options["swap_bytes"] = 60 * page if options["preempt"] == "swap" else 0
    asks, forks = [], []
    for i in range(6):
        params = SamplingParams(temperature=0, max_tokens=draw.choice((4, 14)), ignore_eos=True)
        name = draw.choice(("", *NAMES))
        prompt = PROMPTS[draw.randrange(len(PROMPTS))]
        request = ask(f"r{i}", prompt, name, params, arrival=float(i), priority=draw.randrange(2))
        cancel = draw.choice((None, None, None, draw.randrange(30)))
        asks.append(Ask(request, 0 if cancel is None else min(cancel, draw.randrange(9)), cancel))
    forks.append(Fork(f"r{draw.randrange(6)}", "fork", draw.randrange(20), 0))
    return options, asks, forks


def test_tokens_do_not_depend_on_the_schedule(
    monkeypatch: pytest.MonkeyPatch, folders: dict[str, str]
) -> None:
    happened: Counter[str] = Counter()
    for seed in range(24):
        draw = random.Random(seed)
        options, asks, forks = schedule(draw)
        monkeypatch.setattr(module, "SLICE", draw.choice((1, 100_000, 1 << 20)))
        made = engine("full", folders, **options)
        evict = made.adapters._drop
        made.adapters._drop = lambda adapter, evict=evict: (happened.update(["evicted"]), evict(adapter))
        run = scripted(made, asks, forks)
        for one in asks:
            want = merged_tokens("full", one.request.adapter, one.request.prompt)[
                : one.request.params.max_tokens
            ]
            got = run.outputs.get((one.request.id, 0), [])
            done = (one.request.id, 0) in run.finished
            assert got == (want if done else want[: len(got)]), (seed, one.request.id)
            assert done or one.cancel is not None, (seed, one.request.id)
        happened.update(
            paused=made.counters.recomputes + made.counters.swaps, hit=made.counters.cached_tokens
        )
        assert made.adapters.nbytes <= options["adapter_bytes"]
        nothing_left(made)
    assert min(happened["evicted"], happened["paused"], happened["hit"]) >= 5, (
        f"too little pressure: {happened}"
    )


# ---- memory ----


def test_loaded_adapters_keep_to_their_memory(
    monkeypatch: pytest.MonkeyPatch, folders: dict[str, str]
) -> None:
    """Room for the widest alone: the others come and go, everybody is served, and nobody waits for ever."""
    monkeypatch.setattr(module, "SLICE", 1000)  # loading takes many steps
    sizes = {name: engine("full", folders).adapters.find(name).nbytes for name in ADAPTERS}
    limit = sizes["wide"] + sizes["thin"]
    made = engine("full", folders, adapter_bytes=limit)
    for request in everybody():
        made.add(request)
    outputs, most, first = {}, 0, []
    while made.busy:
        for delta in made.step():
            outputs.setdefault(delta.request, []).extend(delta.tokens)
            if delta.request not in first:
                first.append(delta.request)
        assert made.adapters.nbytes <= limit
        most = max(most, len(made.adapters))
    assert most >= 2, "two would have fit"
    for request in everybody():
        assert outputs[request.id] == merged_tokens("full", request.adapter, request.prompt), request.id
    assert first.index("wide-0") < first.index("plain-1"), "a later one took the place of the one that waited"


def test_the_least_recently_used_adapter_goes(folders: dict[str, str]) -> None:
    made = engine("full", folders)
    sizes = {name: made.adapters.find(name).nbytes for name in ADAPTERS}
    made = engine("full", folders, adapter_bytes=sizes["wide"] + sizes["plain"])

    def loaded(adapter: str) -> set[str]:
        made.add(ask("r", PROMPTS[1], adapter))
        collect(made)
        return {name for name in ADAPTERS if made.adapters.find(name).updates is not None}

    assert loaded("thin") == {"thin"}
    assert loaded("plain") == {"thin", "plain"}
    assert loaded("thin") == {"thin", "plain"}
    assert loaded("wide") == {"thin", "wide"} if sizes["thin"] <= sizes["plain"] else {"wide"}


def test_streams_go_on_while_an_adapter_is_loaded(
    monkeypatch: pytest.MonkeyPatch, folders: dict[str, str]
) -> None:
    monkeypatch.setattr(module, "SLICE", 1000)
    made = engine("full", folders)
    made.add(ask("stream", PROMPTS[1], ""))
    while not made.counters.generated_tokens:
        made.step()
    made.add(ask("late", PROMPTS[1], "wide"))
    meanwhile = 0
    while made.adapters.find("wide").updates is None:
        meanwhile += len(made.step())
    assert meanwhile >= 5
    late = [token for _ in range(40) for d in made.step() if d.request == "late" for token in d.tokens]
    assert len(late) >= 13 and late == merged_tokens("full", "wide", PROMPTS[1])[-len(late) :]


def test_a_request_that_is_cancelled_while_its_adapter_is_loaded(
    monkeypatch: pytest.MonkeyPatch, folders: dict[str, str]
) -> None:
    monkeypatch.setattr(module, "SLICE", 1000)
    made = engine("full", folders)
    made.add(ask("gone", PROMPTS[1], "wide"))
    made.step()
    made.cancel("gone")
    assert not made.busy
    made.add(ask("next", PROMPTS[1], "thin"))
    assert collect(made)["next", 0] == merged_tokens("full", "thin", PROMPTS[1])
    assert len(made.adapters) == 1


def test_a_folder_that_changed_ends_its_requests_alone(tmp_path: Path, folders: dict[str, str]) -> None:
    architecture = models.decoder("full").architecture
    made = engine("full", folders)
    folder = lora_folders.write(tmp_path / "mine", architecture, 4, 9)
    made.adapters.register("mine", folder)
    lora_folders.write(folder, architecture, 4, 10)  # not loaded yet: what counts is what is loaded first
    made.add(ask("a", PROMPTS[1], "mine"))
    first = collect(made)["a", 0]
    made.adapters._drop(made.adapters.find("mine"))
    lora_folders.write(folder, architecture, 4, 11)
    made.add(ask("b", PROMPTS[1], "mine", SamplingParams(seed=1, n=2, max_tokens=3)))
    made.add(ask("c", PROMPTS[1], "plain"))
    deltas = [delta for _ in range(40) for delta in made.step()]
    errors = {(d.request, d.index): d.error for d in deltas if d.error}
    assert set(errors) == {("b", 0), ("b", 1)} and "changed" in errors["b", 0]
    assert [t for d in deltas if d.request == "c" for t in d.tokens] == merged_tokens(
        "full", "plain", PROMPTS[1]
    )
    lora_folders.write(folder, architecture, 4, 10)  # as it was: it is tried anew
    made.add(ask("d", PROMPTS[1], "mine"))
    assert collect(made)["d", 0] == first
    nothing_left(made)


def test_what_is_registered_is_checked(tmp_path: Path, folders: dict[str, str]) -> None:
    made = engine("full", folders)
    good = folders["full-plain"]
    with pytest.raises(ConfigError, match="unload it first"):
        made.adapters.register("plain", good)
    for name in ("", "a/b", "x" * 129, "..\n"):
        with pytest.raises(ConfigError, match="cannot be called"):
            made.adapters.register(name, good)
    with pytest.raises(ConfigError, match="raise adapter_bytes"):
        engine("full", folders, adapter_bytes=100)
    with pytest.raises(ConfigError, match="no adapter called 'nobody'; known: plain"):
        made.check(ask("r", (1,), "nobody"))
    with pytest.raises(ConfigError, match="no adapter called"):
        made.adapters.forget("nobody")


STEADY = SamplingParams(temperature=0, max_tokens=3 * recording.TIMES_WITH_ADAPTERS, ignore_eos=True)


@pytest.mark.skipif(kernels.isa() == kernels.REFERENCE, reason="native calls are what is recorded")
def test_steady_batches_with_adapters_are_played_back(folders: dict[str, str]) -> None:
    """Two rows, the adapter on the first and then on the second: each a recording of its own."""

    def run(record: bool) -> tuple[list[Outputs], Engine]:
        made, found = engine("int4", folders), []
        if not record:
            made.runner.recordings = None
        for order in (("wide", ""), ("", "wide")):
            for i, adapter in enumerate(order):
                made.add(ask(f"{i}", PROMPTS[1][: i + 2], adapter, STEADY))
            found.append(collect(made))
        return found, made

    outputs, made = run(record=True)
    assert len(made.runner.recordings) == 2 and not made.runner.recordings.refused
    assert outputs == run(record=False)[0]


@pytest.mark.skipif(kernels.isa() == kernels.REFERENCE, reason="native calls are what is recorded")
def test_a_recording_goes_with_its_adapter(folders: dict[str, str]) -> None:
    made = engine("int4", folders)
    for adapter in ("wide", "thin"):
        made.add(ask(adapter, PROMPTS[1], adapter, STEADY))
        collect(made)
    assert len(made.runner.recordings) == 2
    numbers = weakref.ref(next(iter(made.adapters.find("wide").updates.values())).weight.down)
    made.adapters.forget("wide")
    assert len(made.runner.recordings) == 1
    assert numbers() is None, "something still holds the adapter's memory"


def test_float32_weights_of_an_adapter_stay_what_they_are(tmp_path: Path) -> None:
    """bfloat16 where the file has it, float32 where not, float64 in a float64 model: nothing is rounded."""
    for model, dtype, want in (
        ("int4", torch.bfloat16, torch.bfloat16),
        ("int4", torch.float16, torch.float32),
        ("full", torch.bfloat16, torch.float64),
    ):
        architecture = models.decoder(model).architecture
        folder = lora_folders.write(tmp_path / f"{model}{dtype}", architecture, 3, 1, dtype=dtype)
        made = engine(model, {f"{_shape(model)}-x": str(folder)})
        made.add(ask("r", PROMPTS[1], "x"))
        collect(made)
        adapter = made.adapters.find("x")
        weight = adapter.updates["blocks.0.attention.out"].weight
        assert weight.down.dtype == weight.up.dtype == want
        assert adapter.nbytes == pytest.approx(sum(u.nbytes for u in adapter.updates.values()), rel=0.2)
