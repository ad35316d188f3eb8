"""One scheduling policy against another on the same requests: same tokens, different waiting."""

from headrace import LLM, SamplingParams

prompts = ["import os\n" * 150, "def add(a, b):", "class Queue:", "for line in"]
params = SamplingParams(temperature=0, max_tokens=24)
answers = []
for policy in ("orca", "sarathi:tokens=16,idle=16"):
    with LLM("tiny", policy=policy) as llm:
        outputs = llm.generate(prompts, params)
        print(policy, [f"{output.ttft_s:.2f} s" for output in outputs])
        answers.append([output.samples[0].token_ids for output in outputs])
assert answers[0] == answers[1]
