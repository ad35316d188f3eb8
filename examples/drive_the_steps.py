"""Drive the engine step by step: two requests, a fork half-way, and what every step ran."""

from headrace import Engine, EngineConfig, SamplingParams
from headrace.text.tokenizer import Tokenizer
from headrace.types import Request

engine = Engine(EngineConfig(model="tiny", stack={"policy": "sarathi:tokens=16,idle=64"}))
assert engine.path is not None
tokenizer = Tokenizer(engine.path)
texts: dict[str, list[int]] = {}
for name, prompt in (("loop", "for i in range("), ("class", "class Stack:\n    def __init__(self")):
    params = SamplingParams(temperature=0.8, seed=1, max_tokens=24)
    engine.add(Request(id=name, prompt=tuple(tokenizer.encode(prompt)), params=params))

step = 0
while engine.busy:
    plan = engine.plan()  # what the next step would run; changes nothing
    print(f"step {step}:", ", ".join(f"{span.seq}[{span.start}:{span.stop}]" for span in plan.spans))
    for delta in engine.step():
        texts.setdefault(delta.request, []).extend(delta.tokens)
    step += 1
    if step == 8:
        engine.fork("loop", "loop again", seed=2)

for name, tokens in texts.items():
    print(f"{name}: {tokenizer.decode(tokens)!r}")
