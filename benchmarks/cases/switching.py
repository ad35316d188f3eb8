"""How much of the large model's accuracy is left when a small one says what it is sure of? The two models in the box.

Tasks with exact answers, greedy, over thresholds from the large model alone (0) to the small one alone (inf). Nothing
is timed: `tiny` is small itself.

    python benchmarks/cases/switching.py [--count 50] [--tasks passkey,edit_copy,json,chain] [--out FILE]

Claims  https://arxiv.org/abs/2502.06833 (EAD): 96.7 % of an 11B model's accuracy with 43 % of the tokens from it;
        92.9 % of a 14B model's with 25 %. Here: accuracy falls from one end to the other as the share does.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

from result import show

from headrace import LLM
from headrace.box.evaluate import accuracy
from headrace.box.tasks import TASKS
from headrace.stats import Counters

THRESHOLDS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, float("inf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--tasks", default="passkey,edit_copy,json,chain")
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--least", type=int, default=4)
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    tasks = given.tasks.split(",")
    rule = f"window={given.window},least={given.least}"
    lines = [
        "# Two models, one text: accuracy by how much the large one says",
        f"{datetime.date.today()}, `python benchmarks/cases/switching.py --count {given.count} --tasks {given.tasks} "
        f"--window {given.window} --least {given.least}`",
        f"`tiny` with `--switcher ead:model=tiny-draft,threshold=T,{rule}`; {given.count} greedy answers per task, "
        "with the share of tokens that are `tiny`'s, and how often a sequence went from one model to the other, per "
        "100 tokens.",
        "| threshold, bits | " + " | ".join(tasks) + " | mean | tokens of `tiny` | switches |",
        "|---|" + "---|" * (len(tasks) + 3),
    ]
    for threshold in given.thresholds:
        spec = f"ead:model=tiny-draft,threshold={threshold},{rule}"
        with LLM("tiny", stack={"switcher": spec}, threads=given.threads) as llm:
            lines.append(row(llm, f"{threshold:g}", tasks, given.count))
    for model in ("tiny", "tiny-draft"):
        with LLM(model, threads=given.threads) as llm:
            lines.append(row(llm, f"`{model}` alone", tasks, given.count))
    show("\n\n".join(lines[:3]) + "\n\n" + "\n".join(lines[3:]) + "\n", given.out)


def row(llm: LLM, name: str, tasks: list[str], count: int) -> str:
    values, cells, all_of = list[float](), list[str](), Counters()
    two = "switcher" in llm.engine.config.stack
    for task in tasks:
        llm.engine.counters = counters = Counters()
        [score] = accuracy(llm, TASKS[task], count, 0)
        values.append(score.value)
        share = 1 - counters.second_tokens / counters.generated_tokens
        cells.append(
            f"{score.value:.2f} ({share:.0%})"
            if "switcher" in llm.engine.config.stack
            else f"{score.value:.2f}"
        )
        for field in ("generated_tokens", "second_tokens", "switches"):
            setattr(all_of, field, getattr(all_of, field) + getattr(counters, field))
    share, often = (
        1 - all_of.second_tokens / all_of.generated_tokens,
        all_of.switches / all_of.generated_tokens,
    )
    ends = f" {share:.0%} | {100 * often:.1f} |" if two else " | |"
    return f"| {name} | {' | '.join(cells)} | **{sum(values) / len(values):.2f}** |{ends}"


if __name__ == "__main__":
    main()
