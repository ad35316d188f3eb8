"""Recorded forward passes: the same tokens as without, and only where a recording is the whole of a pass."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
import torch

from headrace import kernels
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.forward import recording
from headrace.params import SamplingParams
from headrace.types import Request
from tests.whole import models
from tests.whole.drive import Outputs, collect

pytestmark = pytest.mark.skipif(
    kernels.isa() == kernels.REFERENCE, reason="native calls are what is recorded"
)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How many batches of each number of rows were played back."""
    counts: Counter[int] = Counter()
    play = recording.Recording.play

    def counted(self: recording.Recording, batch: object) -> torch.Tensor:
        counts[len(batch.ids_T)] += 1
        return play(self, batch)

    monkeypatch.setattr(recording.Recording, "play", counted)
    return counts


def run(model: str, *, record: bool, stack: dict[str, str] | None = None) -> tuple[Outputs, Engine]:
    """Five requests that come and go, so that batches of one to four rows follow each other."""
    config = EngineConfig(
        stack={**models.stack(model), "policy": "sarathi:tokens=6", **(stack or {})},
        threads=2,
        page_tokens=16,
        max_seqs=4,
    )
    engine = Engine(config, decoder=models.decoder(model), poison=True)
    if not record:
        engine.runner.recordings = None
    for i in range(5):
        prompt = tuple((7 * i + 3 * k) % models.VOCAB for k in range(5 + 4 * i))
        params = SamplingParams(temperature=0, max_tokens=9 + 11 * i, ignore_eos=True)
        engine.add(Request(id=str(i), prompt=prompt, params=params))
    return collect(engine), engine


@pytest.mark.parametrize("model", [name for name in models.NATIVE if name in models.SELECTORS])
def test_what_chooses_anew_is_not_recorded(model: str) -> None:
    _, engine = run(model, record=True)
    assert engine.runner.recordings is None


@pytest.mark.parametrize("model", [name for name in models.NATIVE if name not in models.SELECTORS])
def test_the_same_tokens(model: str, played: Counter[int]) -> None:
    with_recordings, engine = run(model, record=True)
    assert engine.runner.recordings and not engine.runner.recordings.refused
    assert sum(played.values()) >= 20 and {1, 2} <= set(played), "hardly anything was played back"
    made = [recording for recording in engine.runner.recordings._made.values() if recording is not None]
    assert made and all(len(recording._calls) == 1 for recording in made), "a kernel went the slow way"
    assert with_recordings == run(model, record=False)[0]


@pytest.mark.parametrize("model", ["int4", "int8_windows"])
def test_rows_that_are_sampled_come_with_the_batch(model: str, played: Counter[int]) -> None:
    """Two prompts of six tokens in all, cut differently each time: rows 1 and 5, then 2 and 5, then 3 and 5."""
    config = EngineConfig(
        stack={**models.stack(model), "policy": "orca"}, threads=2, page_tokens=16, prefix_cache=False
    )

    def outputs(record: bool) -> list[Outputs]:
        engine = Engine(config, decoder=models.decoder(model), poison=True)
        if not record:
            engine.runner.recordings = None
        found = []
        for first in (2, 3, 4):
            for i, count in enumerate((first, 6 - first)):
                prompt = tuple((5 * first + 11 * i + k) % models.VOCAB for k in range(count))
                params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
                engine.add(Request(id=f"{first}-{i}", prompt=prompt, params=params))
            found.append(collect(engine))
        return found

    with_recordings = outputs(record=True)
    assert played[6] >= 2, "prompts were not played back"
    assert with_recordings == outputs(record=False)


def test_pages_beyond_the_spare_ones_need_a_new_recording(
    monkeypatch: pytest.MonkeyPatch, played: Counter[int]
) -> None:
    monkeypatch.setattr(recording, "_SPARE_PAGES", 1)
    assert run("int4", record=True)[0] == run("int4", record=False)[0]
    assert played


def test_few_recordings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST", 1)
    outputs, engine = run("int4", record=True)
    assert len(engine.runner.recordings) <= 1
    assert outputs == run("int4", record=False)[0]


def test_large_batches_are_not_recorded(monkeypatch: pytest.MonkeyPatch, played: Counter[int]) -> None:
    monkeypatch.setattr(recording, "MOST_ROWS", 1)
    run("int4", record=True)
    assert set(played) == {1}


def test_a_pass_with_other_operations_on_tensors_is_refused(played: Counter[int]) -> None:
    decoder = models.decoder("int4")
    scale = decoder.embed.scale
    try:
        decoder.embed.scale = 2.0  # PyTorch multiplies
        outputs, engine = run("int4", record=True)
        assert "aten::mul" in engine.runner.recordings.refused and not played
        assert outputs == run("int4", record=False)[0]
    finally:
        decoder.embed.scale = scale


def test_a_call_that_was_not_written_down_is_noticed(
    monkeypatch: pytest.MonkeyPatch, played: Counter[int]
) -> None:
    """Somebody kept the function from before."""
    product, find = kernels.native("int_linear"), kernels.native
    monkeypatch.setattr(kernels, "native", lambda name: product if name == "int_linear" else find(name))
    outputs, engine = run("int4", record=True)
    assert "besides its native calls" in engine.runner.recordings.refused and sum(played.values()) == 1
    monkeypatch.undo()
    assert outputs == run("int4", record=False)[0]


def test_watching_a_pass_imports_no_compiler() -> None:
    """PyTorch's takes a second and 45 MB."""
    code = """if True:
        import sys, torch
        from headrace.forward.recording import _Watch
        with _Watch() as watch:
            torch.empty(3)
        assert len(watch.allocated) == 1
        assert "torch._dynamo" not in sys.modules, "torch._dynamo is imported"
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_technique_that_does_not_say_so_is_not_recorded() -> None:
    config = EngineConfig(stack={"weights": "plain"}, threads=1)
    assert Engine(config, decoder=models.decoder("mixed")).runner.recordings is None
