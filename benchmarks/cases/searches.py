"""What do searches find for the same tokens? Chains and countdowns of the box, each strategy within one budget.

    python benchmarks/cases/searches.py --parts FILE.jsonl [--count 200] [--model tiny] [--out FILE]

The budget is tokens that are generated: those of 8 or 16 right answers to the problem. The scorer knows whether what is
there so far can still become right, and errs one time in ten: its verdict on a text is turned round by a hash of that
text, and is the same whenever it is asked. It says 0.9 or 0.1, which is what such a verdict is worth. `shuffled` says
the same two numbers as often, and to whom is drawn by a hash; `knows` never errs. Draws depend on the problem alone.

How hard: one sample is to be right about 10 to 50 % of the time. Of 100 chains of 1, 2, 3, 4, 5, 6 and 8 steps it was
66, 51, 37, 20, 18, 13 and 5 % (4 samples each, at this temperature), of countdowns of 3, 4 and 5 numbers 16, 0 and 0 %.
So 6 steps, the most to err in, and 3 numbers. The strategies keep their defaults.

Every part (task, budget, scorer, strategy) is kept in the file of parts once it is done: what was cut off goes on.

Claims  https://arxiv.org/abs/2502.01618: particles beat best of n for the same tokens. A scorer that knows nothing is
        worth nothing. https://arxiv.org/abs/2505.13672: A* needs fewer tokens than particles for the same accuracy.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import itertools
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from result import show

from headrace.box.evaluate import CONFIDENCE, RESAMPLES
from headrace.box.tasks import TASKS, Example, chain_prefix, check_chain, check_countdown, examples
from headrace.llm import LLM
from headrace.search.rounds import answers
from headrace.search.session import Session
from headrace.search.strategies import SLOT

ERRS = 0.1
"""How often the scorer's verdict is wrong."""
TEMPERATURE = 0.8
TOGETHER = 150
"""Problems that are searched side by side."""
Verdict = Callable[[str], bool]
"""Whether what is there so far can still become right."""


@dataclass(frozen=True)
class Kind:
    """A task, and what one step of it is."""

    task: str
    size: int
    step_tokens: int
    step: str

    @property
    def name(self) -> str:
        return f"{self.task}, {self.size} {TASKS[self.task].size_unit}"


KINDS = (
    Kind("chain", 6, 256, "a line"),
    Kind("countdown", 3, 2, "two tokens"),
)
SCORED = ("best_of_n", "particle", "rebase", "a_star")
PARTS = (
    (8, "none", "self_consistency"),
    *((8, "errs", name) for name in SCORED),
    *((8, "shuffled", name) for name in SCORED),
    (8, "errs", "a_star:again=1"),
    *((16, "knows", name) for name in ("particle", "a_star")),
)
"""Budget in answers, scorer, strategy. again=1: what was grown is grown again only when all else is."""


def strategy(spec: str, n: int, seed: int) -> Any:
    name, _, option = spec.partition(":")
    options = {"particle": f"n={n},seed={seed}", "rebase": f"width={n}", "a_star": option}.get(name, f"n={n}")
    return SLOT.make(f"{name}:{options}" if options else name)


def verdict(example: Example, task: str) -> Verdict:
    if task == "chain":
        return lambda text: (
            chain_prefix(example, text)[1] and ("answer" not in text or check_chain(example, text))
        )
    right = [text for text in expressions(example.facts["numbers"]) if check_countdown(example, text)]
    return lambda text: any(one.startswith(text) for one in right)


def expressions(numbers: Sequence[int]) -> set[str]:
    """All ways to write each number once, with + - *, and a pair of brackets or none around what is joined."""
    if len(numbers) == 1:
        return {str(numbers[0])}
    found = set()
    for size in range(1, len(numbers)):
        for chosen in itertools.combinations(range(len(numbers)), size):
            left = expressions([numbers[i] for i in chosen])
            right = expressions([number for i, number in enumerate(numbers) if i not in chosen])
            for one, sign, other in itertools.product(left, "+-*", right):
                found |= {f"{one}{sign}{other}", f"({one}{sign}{other})"}
    return found


def chance(kind: str, example: Example, text: str) -> float:
    """In [0, 1), drawn by a hash."""
    digest = hashlib.blake2b(f"{kind}\0{example.prompt}\0{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def scores(scorer: str, kind: Kind, example: Example, said: list[bool], yes: float) -> Any:
    """The scorer; what it says is noted in `said`. yes: how often a shuffled one says yes."""
    judge = verdict(example, kind.task)

    def one(text: str) -> float:
        if scorer == "shuffled":
            found = chance("shuffled", example, text) < yes
        else:
            found = judge(text) != (scorer == "errs" and chance("errs", example, text) < ERRS)
        said.append(found)
        return 0.9 if found else 0.1

    return lambda texts: [one(text) for text in texts]


def last_line(text: str) -> str:
    return text.strip().rsplit("\n", 1)[-1]


def run(
    llm: LLM, kind: Kind, made: list[Example], name: str, scorer: str, n: int, yes: float
) -> dict[str, Any]:
    """Searches all problems: which are right, what each took, and the share of the samples that is right."""
    said: list[bool] = []
    sessions, searches = [], []
    for i, example in enumerate(made):
        right = len(llm.tokenizer.encode(example.answer + example.stop, add_special=False))
        session = Session(
            llm,
            example.prompt,
            stop=example.stop,
            temperature=TEMPERATURE,
            step_tokens=kind.step_tokens,
            budget_tokens=n * right,
            seed=i,
        )
        score = None if scorer == "none" else scores(scorer, kind, example, said, yes)
        sessions.append(session)
        searches.append(strategy(name, n, i).search(session, score, last_line))
    found = [
        answer
        for begin in range(0, len(made), TOGETHER)
        for answer in answers(llm, searches[begin : begin + TOGETHER])
    ]
    check = TASKS[kind.task].check
    return {
        "right": [float(check(e, answer.text)) for e, answer in zip(made, found, strict=True)],
        "samples": [
            sum(check(e, branch.text) for branch in answer.branches) / len(answer.branches)
            for e, answer in zip(made, found, strict=True)
        ],
        "tokens": [session.cost.new_tokens for session in sessions],
        "scored": [session.cost.scored for session in sessions],
        "yes": sum(said) / max(1, len(said)),
    }


def interval(values: Sequence[float]) -> str:
    """The mean and its bootstrapped interval, in percent."""
    draw, count = Random(0), len(values)
    means = sorted(sum(draw.choices(values, k=count)) / count for _ in range(RESAMPLES))
    cut = round((1 - CONFIDENCE) / 2 * RESAMPLES)
    return f"{100 * sum(values) / count:.1f} ({100 * means[cut]:.1f} to {100 * means[-1 - cut]:.1f})"


Parts = dict[tuple[str, int, str, str], dict[str, Any]]


def read(path: Path) -> Parts:
    lines = path.read_text().splitlines() if path.exists() else []
    return {tuple(found.pop("part")): found for found in map(json.loads, lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--parts", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    parts = read(given.parts)
    with LLM(given.model, threads=given.threads) as llm:
        for kind, (n, scorer, name) in itertools.product(KINDS, PARTS):
            key = (kind.name, n, scorer, name)
            if key not in parts:
                yes = parts[kind.name, n, "errs", name]["yes"] if scorer == "shuffled" else 0.0
                made = examples(kind.task, given.count, 0, kind.size)
                parts[key] = run(llm, kind, made, name, scorer, n, yes)
                with given.parts.open("a") as file:
                    file.write(json.dumps({"part": key, **parts[key]}) + "\n")
    show(report(parts, given), given.out)


def report(parts: Parts, given: argparse.Namespace) -> str:
    lines = [
        "# What searches find for the same tokens",
        f"{platform.machine()}, {datetime.date.today()}.  \n`python benchmarks/cases/searches.py --parts FILE.jsonl "
        f"--model {given.model} --count {given.count}`",
        f"{given.count} problems each, temperature {TEMPERATURE}. Budget: the tokens of 8 or 16 right answers. The "
        f"scorer errs {ERRS:.0%} of the time. Percent right with {CONFIDENCE:.0%} intervals, differences paired over "
        "problems; tokens and scored answers per problem, as spent.",
    ]
    for kind in KINDS:
        lines.append(f"## {kind.name}; a step is {kind.step}")
        lines += tables({part: parts[(kind.name, *part)] for part in PARTS})
    return "\n\n".join(lines) + "\n"


def tables(found: dict[tuple[int, str, str], dict[str, Any]]) -> list[str]:
    """The table of a task, and the differences that are claimed."""
    plain = found[8, "errs", "best_of_n"]
    single = plain["samples"]
    rows = [
        "| budget | scorer | | right | tokens | scored |\n|---|---|---|---|---|---|",
        f"| 1 | none | one sample | {interval(single)} | {mean(plain['tokens']) / 8:.0f} | 0 |",
    ]
    for (n, scorer, name), part in found.items():
        right, tokens, scored = interval(part["right"]), mean(part["tokens"]), mean(part["scored"])
        rows.append(f"| {n} | {scorer} | {name} | {right} | {tokens:.0f} | {scored:.0f} |")
    better = less(found[8, "errs", "particle"]["right"], plain["right"])
    differences = [f"- errs, 8: particle - best_of_n: {better}"]
    for (n, scorer, name), part in found.items():
        particle = found[n, scorer, "particle"] if scorer != "none" else part
        if name.startswith("a_star") and scorer != "shuffled":
            share = mean(part["tokens"]) / mean(particle["tokens"])
            gap = less(part["right"], particle["right"])
            differences.append(f"- {scorer}, {n}: {name} - particle: {gap}, for {share:.2f} of the tokens")
        if scorer == "shuffled":
            differences.append(f"- {scorer}, {n}: {name} - one sample: {less(part['right'], single)}")
    return ["\n".join(rows), "Differences, in points:", "\n".join(differences)]


def less(values: Sequence[float], others: Sequence[float]) -> str:
    return interval([one - other for one, other in zip(values, others, strict=True)])


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
