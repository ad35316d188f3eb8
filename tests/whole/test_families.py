"""Every family through the whole engine, in chunks, beside others and under pressure, equals transformers' greedy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.models import SLOT
from headrace.params import SamplingParams
from headrace.types import Request
from tests.models import oracle
from tests.whole.drive import collect, nothing_left

PROMPT = [3 + (7 * i * i + 11 * i) % 90 for i in range(20)]
WINDOWED = ["qwen2-window", "phi3-window", "mixtral-window", "llama-dynamic", "llama-yarn", "qwen3_moe-mixed"]


@pytest.mark.parametrize("name", [*(n for n in oracle.CASES if n in SLOT.index), *WINDOWED])
def test_greedy_tokens_equal_transformers(name: str, tmp_path: Path) -> None:
    model = oracle.make(name)
    folder = oracle.save(model, tmp_path)
    longest = 16 if "dynamic" in name else 20  # transformers rotates a longer prompt by its whole length
    prompts = [PROMPT[:longest], PROMPT[:13], PROMPT[5:longest]]
    config = EngineConfig(
        model=str(folder), stack={"policy": "sarathi:tokens=5,idle=7"}, page_tokens=4, threads=1
    )
    handles = len(os.listdir("/proc/self/fd"))
    engine = Engine(config, poison=True)
    for i, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
        engine.add(Request(id=str(i), prompt=tuple(prompt), params=params, arrival=i))
    found = collect(engine)
    for i, prompt in enumerate(prompts):
        assert found[str(i), 0] == oracle.greedy(model, prompt, 64), f"prompt {i}"
    nothing_left(engine)
    assert len(os.listdir("/proc/self/fd")) == handles, "a file handle was left open"
