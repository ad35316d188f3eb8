"""What do guesses gain? The model in the box writes code, greedy and drawn, with each drafter and verifier, in turns.

    python benchmarks/cases/guesses.py [--tokens 96] [--repetitions 3] [--out FILE]

Claims  recycle and draft_model bring more than a token per step (https://arxiv.org/abs/2408.08696 reports 2.7 on larger
        models with 80 guesses); drawn guesses are more often right under `rejection` than under sample matching, and
        those of a tree under `rsd` more often still. Rows are few here: what a step costs is another question, and the
        last column answers it for this model only.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import time
from pathlib import Path

from result import show

from headrace import LLM, SamplingParams, kernels
from headrace.meter import Spread

PROMPTS = (
    "def main():\n    ",
    "import os\nimport sys\n\n\nclass Reader:\n    def __init__(self, path):\n",
    "def merge(left, right):\n    result = []\n    while left and right:\n",
    "    def test_empty(self):\n        self.assertEqual(",
)
SMALL = "model=tiny-draft"
WAYS = {
    "plain": {},
    "recycle, 8 guesses": {"drafter": "recycle", "draft-budget": "fixed:tokens=8"},
    "recycle, 16 guesses": {"drafter": "recycle", "draft-budget": "fixed:tokens=16"},
    "recycle, auto": {"drafter": "recycle"},
    "draft_model, sample_match": {"drafter": f"draft_model:{SMALL}", "draft-budget": "fixed:tokens=5"},
    "draft_model, rejection": {
        "drafter": f"draft_model:{SMALL}",
        "draft-budget": "fixed:tokens=5",
        "verifier": "rejection",
    },
    "draft_tree 2.2.1.1, sample_match": {"drafter": f"draft_tree:{SMALL}", "draft-budget": "fixed:tokens=16"},
    "draft_tree 2.2.1.1, rsd": {
        "drafter": f"draft_tree:{SMALL}",
        "draft-budget": "fixed:tokens=16",
        "verifier": "rsd",
    },
}
TEXTS = {"greedy": 0.0, "temperature 0.8": 0.8}


def read(llm: LLM, temperature: float, tokens: int, seed: int) -> tuple[float, float, float]:
    """Tokens per step, share of guesses that were right, and tokens per second, one prompt after the other."""
    params = SamplingParams(temperature=temperature, seed=seed, max_tokens=tokens, ignore_eos=True)
    counters = llm.engine.counters
    steps, drafted, accepted = counters.steps, counters.drafted_tokens, counters.accepted_tokens
    begin = time.perf_counter()
    for prompt in PROMPTS:
        llm.generate(prompt, params)
    seconds, many = time.perf_counter() - begin, tokens * len(PROMPTS)
    right = (counters.accepted_tokens - accepted) / max(1, counters.drafted_tokens - drafted)
    return many / (counters.steps - steps), right, many / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    llms = {name: LLM("tiny", stack=stack, threads=given.threads) for name, stack in WAYS.items()}
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for repetition in range(given.repetitions):
        for text, temperature in TEXTS.items():
            for name, llm in llms.items():
                found.setdefault((text, name), []).append(
                    read(llm, temperature, given.tokens, seed=repetition)
                )
    for llm in llms.values():
        llm.close()
    show(report(given.tokens, given.repetitions, found), given.out)


def report(
    tokens: int, repetitions: int, found: dict[tuple[str, str], list[tuple[float, float, float]]]
) -> str:
    lines = [
        "# What guesses gain",
        f"{platform.machine()}, level {kernels.isa()}, {kernels.threads()} threads, {datetime.date.today()}.  \n"
        f"`python benchmarks/cases/guesses.py --tokens {tokens} --repetitions {repetitions}`",
        f"`tiny`, {len(PROMPTS)} prompts of code, one after the other, {tokens} tokens each; guesses of `tiny-draft` "
        f"or of a table that lives on. {repetitions} repetitions in turns: median (lowest-highest).",
        "| text | | tokens per step | guesses right | tokens/s, of plain |\n|---|---|---|---|---|",
    ]
    for (text, name), values in found.items():
        plain = [rate for _, _, rate in found[text, "plain"]]
        per_step, right, rates = (list(column) for column in zip(*values, strict=True))
        speed = Spread.of([rate / without for rate, without in zip(rates, plain, strict=True)])
        share = "" if name == "plain" else f"{100 * Spread.of(right).median:.0f} %"
        lines[-1] += f"\n| {text} | {name} | **{Spread.of(per_step):.2f}** | {share} | {speed:.2f}x |"
    return "\n\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
