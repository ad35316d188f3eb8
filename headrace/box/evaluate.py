"""Scores a model on the box's tasks and its held-out text, through the real engine, with intervals.

ppl         bits per byte of held-out text, in overlapping chunks of the context
passkey ... one per task of headrace/box/tasks.py: share of greedy answers that are exactly right
pass        chain problems sampled at temperature 1: pass@1 and pass@64
agreement   how often a draft model's likeliest next token is the model's, on held-out text
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from headrace.box import held_out_text, probe_text
from headrace.box.tasks import TASKS, Example, Task, examples
from headrace.errors import ConfigError, nearest
from headrace.llm import LLM
from headrace.params import SamplingParams
from headrace.text.reply import Output
from headrace.text.tokenizer import check_same_vocabulary

SAMPLES = 64
"""Samples per problem of `pass`."""
PASS_SHARE = 4
"""`pass` runs one problem for this many of the other tasks': each costs 64 answers."""
RESAMPLES = 1000
CONFIDENCE = 0.95
KNOWN = ("ppl", *TASKS, "pass", "agreement")

_log = logging.getLogger(__name__)

Share = tuple[float, float]
"""What one example adds to a figure: (to the numerator, to the denominator)."""


@dataclass(frozen=True)
class Score:
    """One figure, with the interval that resampling its examples gives."""

    task: str
    metric: str
    value: float
    low: float
    high: float
    count: int
    """Examples (ppl and agreement: chunks of text)."""
    size: str = ""
    """How hard the examples were."""


def evaluate(
    llm: LLM, tasks: Sequence[str], *, count: int = 100, seed: int = 0, draft: LLM | None = None
) -> Iterator[Score]:
    """Scores `llm` on each of `tasks` (names of KNOWN), task by task, on the same examples for the same seed.

    Raises ConfigError, before anything runs, for a name that is not known and for `agreement` without a draft model
    that shares the vocabulary. A task whose prompts exceed the context is left out, with a warning.
    """
    unknown = next((name for name in tasks if name not in KNOWN), None)
    if unknown is not None:
        raise ConfigError(f"no task called {unknown!r}; {nearest(unknown, KNOWN)}")
    if "agreement" in tasks:
        _check_draft(llm, draft)
    return _scores(llm, tasks, count, seed, draft)


def _scores(llm: LLM, tasks: Sequence[str], count: int, seed: int, draft: LLM | None) -> Iterator[Score]:
    for name in tasks:
        if name == "ppl":
            yield bits_per_byte(llm, count, seed)
        elif name == "agreement":
            assert draft is not None
            yield agreement(llm, draft, count, seed)
        elif name == "pass":
            yield from pass_at(llm, max(count // PASS_SHARE, 1), seed)
        else:
            yield from accuracy(llm, TASKS[name], count, seed)


def accuracy(llm: LLM, task: Task, count: int, seed: int) -> Iterator[Score]:
    """Share of `count` greedy answers that are right; nothing if a prompt does not fit."""
    made = examples(task.name, count, seed)
    outputs = greedy_answers(llm, task.name, made)
    if outputs is not None:
        shares = [(float(task.check(e, o.text)), 1.0) for e, o in zip(made, outputs, strict=True)]
        yield score(task.name, "accuracy", shares, seed, f"{task.size} {task.size_unit}")


def greedy_answers(llm: LLM, name: str, made: Sequence[Example]) -> list[Output] | None:
    """A greedy answer to every example; None, and a warning, if a prompt does not fit."""
    return _answer(llm, name, made, temperature=0.0)


def pass_at(llm: LLM, count: int, seed: int) -> Iterator[Score]:
    """pass@1 and pass@64 of chain problems: the chance that one of k samples is right."""
    task = TASKS["chain"]
    made = examples(task.name, count, seed)
    outputs = _answer(llm, "pass", made, temperature=1.0, n=SAMPLES, seed=seed)
    if outputs is None:
        return
    right = [sum(task.check(e, s.text) for s in o.samples) for e, o in zip(made, outputs, strict=True)]
    for k in (1, SAMPLES):
        shares = [(pass_estimate(SAMPLES, c, k), 1.0) for c in right]
        yield score("pass", f"pass@{k}", shares, seed, f"{task.size} {task.size_unit}")


def pass_estimate(n: int, right: int, k: int) -> float:
    """1 - C(n - right, k) / C(n, k): the chance that k of n samples, drawn without replacement, hold a right one."""
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def bits_per_byte(llm: LLM, count: int, seed: int, text: str | None = None) -> Score:
    """Bits that the model needs per byte of text, in at most `count` chunks."""
    chunks = make_chunks(llm, held_out_text() if text is None else text)[:count]
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    outputs = llm.generate([chunk.prompt for chunk in chunks], params)
    shares = []
    for chunk, output in zip(chunks, outputs, strict=True):
        scored = output.prompt_logprobs[chunk.known - 1 :]  # entry i is of token i + 1
        size = len(llm.tokenizer.decode_bytes(chunk.prompt[chunk.known :]))
        shares.append((-sum(item.logprob for item in scored) / math.log(2), float(size)))
    return score("ppl", "bits/byte", shares, seed, f"{len(chunks[0].prompt)} tokens")


def agreement(llm: LLM, draft: LLM, count: int, seed: int, text: str | None = None) -> Score:
    """Share of positions of the text at which both models find the same next token likeliest."""
    shorter = min(llm, draft, key=lambda one: one.engine.context)
    chunks = make_chunks(shorter, held_out_text() if text is None else text)[:count]
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
    prompts = [chunk.prompt for chunk in chunks]
    shares = []
    for chunk, ours, theirs in zip(
        chunks, llm.generate(prompts, params), draft.generate(prompts, params), strict=True
    ):
        pairs = list(zip(ours.prompt_logprobs, theirs.prompt_logprobs, strict=True))[chunk.known - 1 :]
        shares.append((float(sum(a.top[0][0] == b.top[0][0] for a, b in pairs)), float(len(pairs))))
    return score("agreement", "argmax", shares, seed, f"{len(prompts[0])} tokens")


@dataclass(frozen=True)
class Chunk:
    """A piece of text to score: the tokens from `known` on; those before are context."""

    prompt: list[int]
    known: int


def make_chunks(llm: LLM, text: str) -> list[Chunk]:
    """Chunks of the context's length that move on by half of it, so that every token but the first has context."""
    ids = llm.tokenizer.encode(text, add_special=False)
    first = [] if llm.tokenizer.bos is None else [llm.tokenizer.bos]
    length = llm.engine.context - 1  # one token is generated
    chunks = [Chunk([*first, *ids[: length - len(first)]], 1)]
    stop = length - len(first)
    while stop < len(ids):
        start, stop = stop, min(stop + length // 2, len(ids))
        chunks.append(Chunk([*first, *ids[stop - length + len(first) : stop]], length - (stop - start)))
    return chunks


def read_card(folder: Path) -> dict[str, float]:
    """The figures of a model in the box, by "task metric"; empty for models without a card."""
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    figures = card.get("figures", {}) if isinstance(card, dict) else {}
    return {key: value for key, value in figures.items() if isinstance(value, int | float)}


def _answer(
    llm: LLM,
    name: str,
    made: Sequence[Example],
    *,
    temperature: float,
    n: int = 1,
    seed: int | None = None,
) -> list[Output] | None:
    """Answers to every example; None if a prompt with its answer exceeds the context."""
    prompts = [llm.tokenizer.encode(example.prompt) for example in made]
    answers = [len(llm.tokenizer.encode(e.answer + e.stop, add_special=False)) for e in made]
    longest = max(len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True))
    if longest >= llm.engine.context:
        _log.warning(
            "%s is left out: %d tokens do not fit in the context of %d", name, longest, llm.engine.context
        )
        return None
    params = [
        SamplingParams(
            temperature=temperature,
            n=n,
            seed=None if seed is None else seed + i,
            max_tokens=2 * answer + 16,  # room for a longer right answer, or to be wrong
            stop=(example.stop,),
        )
        for i, (example, answer) in enumerate(zip(made, answers, strict=True))
    ]
    return llm.generate(prompts, params)


def score(task: str, metric: str, shares: Sequence[Share], seed: int, size: str) -> Score:
    """A figure with its interval."""
    low, high = bootstrap(shares, seed)
    return Score(task, metric, _ratio(shares), low, high, len(shares), size)


def bootstrap(shares: Sequence[Share], seed: int) -> tuple[float, float]:
    """The 95 % interval of the ratio of sums, from resampled examples."""
    rng = Random(seed)
    ratios = sorted(_ratio(rng.choices(shares, k=len(shares))) for _ in range(RESAMPLES))
    cut = round(RESAMPLES * (1 - CONFIDENCE) / 2)
    return ratios[cut], ratios[-1 - cut]


def _ratio(shares: Sequence[Share]) -> float:
    return sum(share[0] for share in shares) / sum(share[1] for share in shares)


def _check_draft(llm: LLM, draft: LLM | None) -> None:
    if draft is None:
        raise ConfigError("agreement compares two models: name the second with --draft")
    check_same_vocabulary("agreement needs one vocabulary", llm.tokenizer, draft.tokenizer, probe_text())
