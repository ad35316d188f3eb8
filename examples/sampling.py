"""Processors are a stack of their own: their order is a choice, and what a request asks for must be among them."""

from headrace import LLM, SamplingParams

params = SamplingParams(temperature=1.2, top_k=20, top_p=0.9, seed=7, n=3, max_tokens=16)
for processors in ("temperature+top_k+top_p", "top_p+top_k+temperature"):
    with LLM("tiny", processors=processors) as llm:
        [output] = llm.generate("def ", params)
        print(processors, [sample.text for sample in output.samples])
