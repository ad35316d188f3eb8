"""What does a second model's guessing gain, and is it what its costs say? A target that waits for memory, and a script.

Random weights write no text: what comes next is a script, and the target only takes its time. So does the second model,
a tenth of the target's size: it runs as it would, step by step, with pages of its own, and its guesses are then set to
be the script's token at a share of the places, drawn anew in each turn, and another token elsewhere. Ways take turns in
one process; what the automatic one has learnt of a kind of text, it keeps.

    python benchmarks/cases/draft_model.py [--shape llama-3.2-1b] [--weights int4] [--tokens 100] [--length 4]
        [--right 0.7] [--turns 5] [--out FILE]

Predicted is the speed-up from costs that are measured apart: tokens of a round, (1 - p^(k+1)) / (1 - p), over what a
round costs in plain steps: a step of k + 1 rows, and k guesses of the second model.

Claims  at 70 % right at least 1.6 times plain decoding, within 15 % of the prediction; automatic never slower than
        plain by more than 3 %, whatever is right
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import platform
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from result import show

from headrace import kernels
from headrace.architecture import Architecture
from headrace.auxiliary import SecondModel
from headrace.commands.bench import start
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.forward.load import random as random_decoder
from headrace.meter import Spread
from headrace.types import Request, SamplingParams

PROMPT = 64
"""Tokens."""
NEVER = 0.0
"""Share of right guesses where nothing can be guessed."""


def small(large: Architecture) -> Architecture:
    """A tenth of llama-3.2-1b: 124 million weights, over half of them the vocabulary's."""
    [block] = set(large.blocks)
    attention = dataclasses.replace(block.attention, heads=8, kv_heads=2)
    block = dataclasses.replace(block, attention=attention, mlp=dataclasses.replace(block.mlp, width=2048))
    return dataclasses.replace(large, width=512, blocks=(block,) * 15)


class Script:
    """What comes at each place, and what the second model guesses to come there."""

    def __init__(self, vocab: int, length: int, right: float, seed: int) -> None:
        draw = random.Random(seed)
        self.tokens = draw.sample(range(vocab), length)
        hits = [i < right * length for i in range(length)]
        draw.shuffle(hits)
        self.guesses = [
            token if hit else (token + 1) % vocab for token, hit in zip(self.tokens, hits, strict=True)
        ]


def follow(engine: Engine, tokens: Sequence[int]) -> None:
    """Whatever the logits are, the token at a position is this one."""
    engine.sampler._choose = lambda seq, raw_V, greedy, position, guesses: tokens[position]  # type: ignore[method-assign]


class Free:
    """Guesses that cost nothing, to see what a step of their rows costs."""

    def __init__(self) -> None:
        self.tokens: Sequence[int] = ()

    def greedy(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        return tuple(self.tokens[len(tokens) :][:count])


def read(engine: Engine, script: Script) -> tuple[float, float]:
    """Seconds per token of decoding, and tokens per step."""
    follow(engine, script.tokens)
    count = len(script.tokens) - PROMPT
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    engine.add(Request(id="r", prompt=tuple(script.tokens[:PROMPT]), params=params))
    while not engine.step():
        pass
    begin, steps = time.perf_counter(), 0
    while engine.busy:
        engine.step()
        steps += 1
    return (time.perf_counter() - begin) / (count - 1), (count - 1) / steps


def guessing(model: SecondModel, script: Script, length: int) -> float:
    """Seconds of a round's guesses, at the places where rounds would begin."""
    follow(model._engine, script.guesses)
    place, rounds, seconds = PROMPT + 1, 0, 0.0
    model.greedy(script.tokens[:place], length)
    while place + length < len(script.tokens):
        begin = time.perf_counter()
        guesses = model.greedy(script.tokens[:place], length)
        seconds += time.perf_counter() - begin
        pairs = zip(guesses, script.tokens[place:], strict=False)
        place += 1 + next((i for i, (guess, token) in enumerate(pairs) if guess != token), length)
        rounds += 1
    return seconds / rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--length", type=int, default=4)
    parser.add_argument("--right", type=float, default=0.7)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    show(report(given, measure(given)), given.out)


def measure(given: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Name -> (seconds per token, tokens per step) of each turn; of guesses alone, seconds per round."""
    common = {"weights": given.weights, "kv-codec": "bf16"}
    first = start(EngineConfig(stack=common), given.shape, [(1, PROMPT, given.tokens)])
    same = {"model": given.shape, "kv_bytes": first.config.kv_bytes}
    form = first.stack.one("weights")
    decoder = random_decoder(small(first.architecture), 1, first.decoder.dtype, form=form)
    second = Engine(EngineConfig(stack=common, model="second"), decoder=decoder)
    model, free = SecondModel(second, first.architecture.vocab), Free()

    def engine(budget: str, guesser: Any) -> Engine:
        """A drafter guesses `length` tokens at most."""
        stack = {
            **common,
            "drafter": f"draft_model:model=second,length={given.length}",
            "draft-budget": budget,
        }
        Engine._open = lambda self, name: guesser  # type: ignore[method-assign]
        return Engine(EngineConfig(stack=stack, prefix_cache=False, **same), decoder=first.decoder)

    plain = Engine(EngineConfig(stack=common, prefix_cache=False, **same), decoder=first.decoder)
    fixed, rows = (engine(f"fixed:tokens={given.length}", guesser) for guesser in (model, free))
    auto, hopeless = (engine("auto", model) for _ in range(2))
    found: dict[str, list[tuple[float, float]]] = {}
    for turn in range(-1, given.turns):
        length = PROMPT + given.tokens
        script, silent = (Script(first.architecture.vocab, length, r, turn) for r in (given.right, NEVER))
        free.tokens = script.tokens
        follow(second, script.guesses)
        read_now = {"plain": read(plain, script), "fixed": read(fixed, script)}
        read_now["auto"] = read(auto, script)
        read_now["rows"] = read(rows, script)
        read_now["guesses"] = (guessing(model, script, given.length), 0.0)
        follow(second, silent.guesses)
        read_now["plain, nothing right"] = read(plain, silent)
        read_now["auto, nothing right"] = read(hopeless, silent)
        for name, value in read_now.items():
            found.setdefault(name, []).append(value)
    return {name: values[1:] for name, values in found.items()}  # the first turn warms up


def report(given: argparse.Namespace, found: dict[str, list[tuple[float, float]]]) -> str:
    seconds = {name: [first for first, _ in values] for name, values in found.items()}
    k, p = given.length, given.right
    tokens = (1 - p ** (k + 1)) / (1 - p)
    step = [each * per for each, per in found["rows"]]  # of k + 1 rows
    costs = list(zip(step, seconds["guesses"], seconds["plain"], strict=True))
    predicted = [tokens * plain / (many + guesses) for many, guesses, plain in costs]
    measured = [plain / each for plain, each in zip(seconds["plain"], seconds["fixed"], strict=True)]
    lines = [
        "# What a second model's guesses gain",
        f"{platform.machine()}, level {kernels.isa()}, {kernels.threads()} threads, {datetime.date.today()}.  \n"
        f"`python benchmarks/cases/draft_model.py --shape {given.shape} --weights {given.weights} --tokens "
        f"{given.tokens} --length {k} --right {p} --turns {given.turns}`",
        f"Random weights, a script instead of their choice; a second model of a tenth of the weights really runs, and "
        f"its guesses are set to be right at {p:.0%} of the places. {given.turns} turns: median "
        "(lowest-highest); ratios within each turn.",
        "| | ms per token | of plain's speed | tokens per step |\n|---|---|---|---|",
    ]
    names = {
        "plain": "plain",
        "fixed": f"draft_model, {k} guesses",
        "auto": "draft_model, auto",
        "plain, nothing right": "plain, a text that cannot be guessed",
        "auto, nothing right": "draft_model, auto, nothing right",
    }
    for name, text in names.items():
        base = seconds["plain, nothing right" if "nothing" in name else "plain"]
        ratio = Spread.of([b / each for b, each in zip(base, seconds[name], strict=True)])
        each, per = Spread.of([1e3 * s for s in seconds[name]]), Spread.of([per for _, per in found[name]])
        lines[-1] += f"\n| {text} | {each:.1f} | **{ratio:.2f}x** | {per:.2f} |"
    of_step = Spread.of([many / plain for many, _, plain in costs])
    of_guesses = Spread.of([guesses / plain for _, guesses, plain in costs])
    error = Spread.of([m / e for m, e in zip(measured, predicted, strict=True)])
    lines.append(
        f"Apart, in plain steps: a step of {k + 1} rows {of_step:.2f}, {k} guesses {of_guesses:.2f}. Predicted: "
        f"{tokens:.2f} tokens per round, **{Spread.of(predicted):.2f}x**; measured over predicted {error:.2f}."
    )
    return "\n\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
