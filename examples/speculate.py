"""Guesses are checked, so the text keeps its law; how many were right decides how fast it comes."""

from headrace import LLM, SamplingParams

prompt = (
    "def area(width, height):\n    return width * height\n\n\ndef volume(width, height, depth):\n    return"
)
params = SamplingParams(temperature=0, max_tokens=60)
for stack in (
    {},
    {"drafter": "copyspec"},
    {"drafter": "recycle"},
    {"drafter": "draft_model:model=tiny-draft", "draft-budget": "fixed"},
):
    with LLM("tiny", stack=stack) as llm:
        [output] = llm.generate(prompt, params)
        counters = llm.engine.counters
        drafted = (
            f"{counters.accepted_tokens} of {counters.drafted_tokens} guesses right, {counters.steps} steps"
        )
        print(stack or "no drafter", repr(output.text[:30]), drafted)

# Drawn text: the likeliest guesses, matched with what is drawn; or guesses that are drawn, weighed by their law.
for verifier in ("sample_match", "rejection"):
    stack = {"drafter": "draft_model:model=tiny-draft", "draft-budget": "fixed", "verifier": verifier}
    with LLM("tiny", stack=stack) as llm:
        llm.generate(prompt, SamplingParams(temperature=0.8, seed=1, max_tokens=60))
        counters = llm.engine.counters
        print(verifier, f"{counters.accepted_tokens} of {counters.drafted_tokens} guesses right")
