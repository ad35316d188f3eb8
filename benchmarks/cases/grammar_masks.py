"""What do grammars cost a decoding step? Steps under eight different JSON schemas against steps without, in turns.

Random weights have no tokenizer: the vocabulary is made for the purpose, of the model's size, from the most frequent
words, parts of words and runs of signs of the Python standard library. Random weights choose at random among what a
mask allows, so the texts are odd, but of their form. `ahead` is with drafts of forced tokens, as engines run; `plain`
without, so that a step has as many rows as one without grammars, and the difference is what masks cost.

    python benchmarks/cases/grammar_masks.py [--shape llama-3.2-1b] [--weights int4] [--batch 8] [--grammar llguidance]
        [--repeats 7] [--steps 48] [--out FILE]

Target  masks cost less than 3 % of a step at batch 8 of llama-3.2-1b
"""

from __future__ import annotations

import argparse
import bisect
import collections
import datetime
import itertools
import json
import platform
import random
import re
import statistics
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from result import show

from headrace import kernels
from headrace.commands.bench import start
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.meter import Spread
from headrace.params import Grammar, SamplingParams
from headrace.sample.constrained import Constraints
from headrace.sample.vocabulary import Vocabulary
from headrace.types import Request

SCHEMAS = Path(__file__).parents[2] / "tests" / "data" / "schemas.json"
NAMES = ("person", "nested", "array_of_objects", "any_of", "optional", "map", "tool_call", "wide")
WARM = 4
MODES = ("none", "plain", "ahead")
_PIECES = re.compile(rb" ?[A-Za-z]+| ?[0-9]{1,3}| ?[^\sA-Za-z0-9]+|\s+")


class MadeUp:
    """Stands for a tokenizer: every byte, then the most frequent pieces of source text, up to `size`."""

    def __init__(self, size: int, bos: int, special: frozenset[int]) -> None:
        self.size, self.bos, self.eos, self.special = size, bos, None, special
        counts: collections.Counter[bytes] = collections.Counter()
        for piece, count in itertools.islice(_pieces().items(), 400_000):
            for length in range(2, min(len(piece), 16) + 1):
                counts[piece[:length]] += count
                counts[piece[-length:]] += count // 2
        texts = [bytes([i]) for i in range(256)] + [text for text, _ in counts.most_common(size)]
        ids = [i for i in range(size) if i not in special]
        self._texts = dict(zip(ids, texts, strict=False))
        assert len(self._texts) == len(ids), "too little text for so many tokens"
        self._ids = sorted((text, i) for i, text in self._texts.items())

    def bytes_of(self, token: int) -> bytes:
        return self._texts.get(token, b"")

    def encode_bytes(self, data: bytes) -> list[int]:
        """The longest token first."""
        ids: list[int] = []
        while data:
            for length in range(min(len(data), 16), 0, -1):
                place = bisect.bisect_left(self._ids, (data[:length], -1))
                if place < len(self._ids) and self._ids[place][0] == data[:length]:
                    ids.append(self._ids[place][1])
                    data = data[length:]
                    break
        return ids


def _pieces() -> collections.Counter[bytes]:
    counts: collections.Counter[bytes] = collections.Counter()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("**/*.py"))[:1500]:
        if "site-packages" not in path.parts:
            counts.update(_PIECES.findall(path.read_bytes()))
    return counts


@dataclass
class Clock:
    """Microseconds of the parts, per call."""

    parts: dict[str, list[float]] = field(default_factory=lambda: collections.defaultdict(list))

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.parts[name].append((time.perf_counter() - begin) * 1e6)

        return timed


def grammars() -> Iterator[Grammar]:
    """Lists so long that none ends while it is measured."""
    known = json.loads(SCHEMAS.read_text("utf-8"))
    for name in NAMES:
        yield Grammar("json_schema", json.dumps({"type": "array", "items": known[name], "minItems": 500}))


def equip(engine: Engine, spec: str, clock: Clock) -> float:
    """Gives the engine a vocabulary and a grammar compiler; seconds that reading the vocabulary takes."""
    from headrace.sample.grammars import SLOT

    size, eos = (
        engine.architecture.vocab,
        (engine.architecture.vocab - 1,),
    )  # which the engine does not stop at
    made = Vocabulary(MadeUp(size, eos[0], frozenset(eos)), size, eos)  # type: ignore[arg-type]
    begin = time.perf_counter()
    compiler = SLOT.make(spec).start(made)
    seconds = time.perf_counter() - begin
    matcher = type(compiler.compile(Grammar("json_object")))
    for name in ("mask", "forced", "accept"):
        setattr(matcher, name, clock.around(name, getattr(matcher, name)))
    compiler.compile = clock.around("compile", compiler.compile)  # type: ignore[method-assign]
    engine.sampler.constraints = Constraints(lambda: compiler)
    return seconds


def read(
    engine: Engine, mode: str, batch: int, prompt_len: int, steps: int, seed: int
) -> tuple[list[float], float]:
    """Seconds of decoding steps with the whole batch in them, and tokens per sequence and step."""
    engine.speculator.extend = extended if mode == "ahead" else lambda plan: plan  # type: ignore[method-assign]
    draw, forms = random.Random(seed), itertools.cycle(grammars())
    for i in range(batch):
        params = SamplingParams(
            seed=i,
            max_tokens=engine.context - prompt_len - 1,
            grammar=None if mode == "none" else next(forms),
        )
        prompt = tuple(draw.choices(range(engine.architecture.vocab), k=prompt_len))
        engine.add(Request(id=str(i), prompt=prompt, params=params))
    while len(engine.step()) < batch:
        pass
    readings, tokens = [], 0
    for _ in range(WARM + steps):
        begin = time.perf_counter()
        deltas = engine.step()
        readings.append(time.perf_counter() - begin)
        assert len(deltas) == batch, [d.error for d in deltas if d.error]
        tokens += sum(len(delta.tokens) for delta in deltas)
    engine.close()
    return readings[WARM:], tokens / batch / len(readings)


extended: Any = None


def main() -> None:
    global extended
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--grammar", default="llguidance")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    config = EngineConfig(stack={"weights": given.weights, "kv-codec": "bf16"})
    length = (given.steps + WARM) * 20
    engine = start(config, given.shape, [(given.batch, given.prompt_len, length)])
    extended, clock = engine.speculator.extend, Clock()
    seconds = equip(engine, given.grammar, clock)
    medians: dict[str, list[float]] = {mode: [] for mode in MODES}
    rates: dict[str, list[float]] = {mode: [] for mode in MODES}
    for repeat in range(given.repeats + 1):
        for mode in MODES:
            steps, rate = read(engine, mode, given.batch, given.prompt_len, given.steps, repeat)
            if repeat:  # the first is to warm up
                medians[mode].append(statistics.median(steps))
                rates[mode].append(rate)
    show(report(given, clock, medians, rates, seconds), given.out)


def report(given: Any, clock: Clock, medians: Any, rates: Any, seconds: float) -> str:
    lines = [
        "# What grammars cost a decoding step",
        f"{platform.machine()}, level {kernels.isa()}, {kernels.threads()} threads, {datetime.date.today()}.  \n"
        f"`python benchmarks/cases/grammar_masks.py --shape {given.shape} --weights {given.weights} --grammar "
        f"{given.grammar} --batch {given.batch} --prompt-len {given.prompt_len} --steps {given.steps} --repeats "
        f"{given.repeats}`",
        f"Eight JSON schemas, random weights. Medians of {given.repeats} repetitions in turns (lowest-highest); the "
        "ratio is taken within each repetition.",
        "| | ms per step | against none | tokens per sequence and step |\n|---|---|---|---|",
    ]
    for mode in MODES:
        ratios = [a / b - 1 for a, b in zip(medians[mode], medians["none"], strict=True)]
        ms, rate = Spread.of([m * 1e3 for m in medians[mode]]), Spread.of(rates[mode])
        ratio = Spread.of([100 * r for r in ratios])
        lines[-1] += f"\n| {mode} | {ms:.2f} | {ratio:+.1f} % | {rate:.2f} |"
    lines.append("| part | calls | microseconds |\n|---|---|---|")
    for name, values in clock.parts.items():
        lines[-1] += f"\n| {name} | {len(values)} | {Spread.of(sorted(values)):.0f} |"
    lines.append(f"Reading the vocabulary took {seconds:.1f} s, once.")
    return "\n\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
