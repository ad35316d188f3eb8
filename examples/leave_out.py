"""What need not be computed is a choice: half of the neurons, later layers, most of a long prompt."""

import tempfile
from pathlib import Path

from headrace import LLM, SamplingParams, cli
from headrace.box.drift import drift

profile = Path(tempfile.mkdtemp()) / "neurons.json"
cli.main(["profile", "--of", "neurons", "--tokens", "256", "--out", str(profile), "--quiet"])

with LLM("tiny") as exact:
    for skipper in (f"cats:profile={profile},sparsity=0.3", "skipdecode:least=0.75,tokens=32"):
        with LLM("tiny", stack={"skipper": skipper}) as llm:
            kl, _, divergence = drift(llm, exact, count=2, seed=0)
            print(f"{skipper.partition(':')[0]}: {kl.value:.4f} nats, {divergence.value:.0f} tokens alike")

prompt = "The password is 7142.\n" + "The mill turns.\n" * 60 + "The password is"
with LLM("tiny", stack={"shrinker": "gemfilter:keep=64"}) as llm:
    [output] = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=6), progress=False)
    print(repr(output.text), output.usage)
