"""A model need not fit in memory: blocks that do not are read from disk ahead of each step, and no token changes."""

from headrace import LLM, SamplingParams

greedy = SamplingParams(temperature=0, max_tokens=24)
with LLM("tiny", stack={"weights": "bf16"}) as llm:
    [whole] = llm.generate(["def mean(values):"], greedy, progress=False)

stack = {"weights": "bf16", "weight-tier": "window:bytes=4M"}  # its blocks take 9.8 MiB
with LLM("tiny", stack=stack) as llm:
    [windowed] = llm.generate(["def mean(values):"], greedy, progress=False)
    print(windowed.text)
    print("the same:", windowed.text == whole.text)
