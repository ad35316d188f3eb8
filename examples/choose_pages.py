"""A step need not read all that is stored: the pages that its query could look at most are enough to find the key."""

from headrace import LLM, SamplingParams

filler = " ".join(
    f"The river {name} flows past the mill and into the sea." for name in "Ana Bren Cole Dun".split()
)
prompt = f"{filler * 5} The pass key is 40721. Remember it: 40721 is the pass key. {filler * 5}"
question = "\nWhat is the pass key? The pass key is"
for stack in (
    {},
    {"kv-selector": "landmarks:share=0.25,least=64"},
    {"kv-selector": "squeezed:share=0.25,least=64"},
    {"kv-keeper": "streaming:sink=16,window=144"},
):
    with LLM("tiny", stack=stack) as llm:
        [output] = llm.generate(prompt + question, SamplingParams(temperature=0, max_tokens=6))
        print(stack or "everything", f"{len(llm.tokenizer.encode(prompt))} tokens:", repr(output.text))
