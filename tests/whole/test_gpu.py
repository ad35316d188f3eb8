"""On a GPU: the tokens that the CPU gives. Skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from headrace import LLM, SamplingParams, box, kernels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")

STACKS = [
    {},
    {"kv_codec": "int8"},
    {"kv_codec": "kivi"},
    {"kv_keeper": "streaming:sink=4,window=32"},
    {"drafter": "copyspec"},
    {"policy": "sarathi:tokens=16", "kv_bytes": 900_000},  # prompts in chunks, and somebody gives way
    {"preempt": "swap", "swap_bytes": 1 << 24, "kv_bytes": 900_000},
    {"skipper": "lazyllm:steps=2,shortest=32", "prefix_cache": False},
    {"switcher": "ead:model=tiny,threshold=1"},
    {"kv_tier": "host:size=64MiB", "kv_bytes": 900_000},
    {"kv_tier": "disk:size=64MiB,stage=1MiB", "kv_bytes": 900_000},
]


def answers(device: str, stack: dict[str, object]) -> list[tuple[int, ...]]:
    """In float64, where two orders of a sum do not choose different tokens."""
    text = box.probe_text()
    prompts = [text[: 60 * i + 40] for i in (0, 1, 2, 4)] + ["def add(", text[:200]]
    kinds = [
        {"temperature": 0.0},
        {"temperature": 0.8, "seed": 3, "n": 2},
        {"temperature": 1.0, "seed": 5, "top_p": 0.9, "repetition_penalty": 1.2},
        {"temperature": 0.0, "logprobs": 3},
    ]
    params = [SamplingParams(max_tokens=12, **kinds[i % len(kinds)]) for i in range(len(prompts))]  # type: ignore[arg-type]
    settings = {"device": device, "dtype": "float64", "context": 256, "threads": 1} | stack
    with kernels.forced(kernels.REFERENCE), LLM("tiny-draft", **settings) as llm:
        outputs = llm.generate(prompts, params)
    return [sample.token_ids for output in outputs for sample in output.samples]


@pytest.mark.parametrize("stack", STACKS, ids=str)
def test_the_same_tokens(stack: dict[str, object]) -> None:
    assert answers("cuda", stack) == answers("cpu", stack)
