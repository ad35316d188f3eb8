"""Two models write one text: the small one what it is sure of, the large one the rest."""

from headrace import LLM, SamplingParams

prompt = "import os\n\n\ndef main():\n    "
params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
for threshold in (0, 1, 2, 3, "inf"):  # bits of entropy, the mean of the last tokens
    with LLM("tiny", stack={"switcher": f"ead:model=tiny-draft,threshold={threshold}"}) as llm:
        [output] = llm.generate(prompt, params)
        counters = llm.engine.counters
        share = 1 - counters.second_tokens / counters.generated_tokens
        print(f"{threshold}: {share:.0%} by tiny, {counters.switches} switches, {output.text[:40]!r}")
