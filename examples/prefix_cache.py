"""The second of two prompts that share their beginning computes only the rest."""

from headrace import LLM, SamplingParams

shared = "".join(f"def step_{i}(x):\n    return x + {i}\n\n\n" for i in range(60))
with LLM("tiny") as llm:
    for question in ("def last(", "class Last:"):
        before = llm.engine.stats().counters
        [output] = llm.generate(shared + question, SamplingParams(temperature=0, max_tokens=16))
        after = llm.engine.stats().counters
        cached = after.cached_tokens - before.cached_tokens
        total = output.usage.prompt_tokens
        print(f"{total} prompt tokens, {cached} of them cached, first token in {output.ttft_s:.3f} s")
