"""How keys and values are stored is a choice: bytes per token, and how far the model's next words move."""

from headrace import LLM
from headrace.box.drift import drift

with LLM("tiny") as exact:
    for stack in ({"kv-codec": "int8"}, {"kv-codec": "kivi"}, {"kv-keeper": "streaming:sink=4,window=60"}):
        with LLM("tiny", stack=stack) as llm:
            kl = next(drift(llm, exact, count=4, seed=0))
            print(
                stack, f"{llm.engine.kv.bytes_per_token():.0f} bytes per token, {kl.value:.5f} nats of drift"
            )
