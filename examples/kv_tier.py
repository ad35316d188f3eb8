"""Prompts that a small pool has no room for wait on disk, and come back instead of being computed again."""

import tempfile

from headrace import LLM, SamplingParams

texts = [
    "".join(f"def {name}_{i}(x):\n    return x + {i}\n\n\n" for i in range(30)) for name in ("one", "two")
]
greedy = SamplingParams(temperature=0, max_tokens=8)
with tempfile.TemporaryDirectory() as folder:
    for stack in ({}, {"kv-tier": f"disk:size=64MiB,folder={folder}"}):
        with LLM("tiny", stack=stack, context=640, kv_bytes=6 << 20) as llm:
            for text in texts * 2:
                [output] = llm.generate(text, greedy)
            counters = llm.engine.stats().counters
            print(
                stack or "no tier",
                f"{counters.computed_tokens} tokens computed, {counters.promoted_pages} pages came back:",
                repr(output.text),
            )
