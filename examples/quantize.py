"""A recipe chooses the codes of the weights by what they do to text; the folder that it writes runs as it is."""

import subprocess
import sys
import tempfile

from headrace import LLM, box

prompt, text = box.held_out_text()[:600], box.held_out_text()[600:1200]
for recipe in ("rtn", "gptq"):
    with tempfile.TemporaryDirectory() as out:
        flags = f"--recipe {recipe} --weights int3 --samples 4 --tokens 256 --out {out} -q".split()
        subprocess.run([sys.executable, "-m", "headrace", "quantize", *flags], check=True)
        with LLM(out) as llm:
            [score] = llm.score(prompt, [text])
            print(
                f"{recipe}: {score.logprob:.1f} nats for unseen text, as {llm.engine.stack.spec('weights')}"
            )
