"""How much sooner does a long prompt's first token come, when its tokens leave on the way up the layers?

One request at a time, prompts of random tokens, in turns; then some tokens that follow. Then the model in the box looks
for a passkey, and is asked how likely it finds the text that follows a long prompt, token by token.

    python benchmarks/cases/lazyllm.py [--shape llama-3.2-1b] [--weights int4] [--prompt 2048]
        [--specs lazyllm lazyllm:keep=0.1] [--part speed|quality] [--out FILE]

Claim   https://arxiv.org/abs/2407.14057 (LazyLLM): the first token comes 2.34 times as soon, in question answering over
        several documents with Llama 2 7B
Target  the first token of a prompt of 2,048 comes at least 1.4 times as soon, and as many passkeys are found
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import math
import platform
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from result import show

from headrace import LLM, kernels
from headrace.box import held_out_text
from headrace.box.evaluate import accuracy, score
from headrace.box.tasks import TASKS
from headrace.commands import shapes
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.forward.decoder import Decoder
from headrace.forward.memory import set_threads
from headrace.forward.runner import Logits
from headrace.forward.skippers import SLOT
from headrace.meter import Spread
from headrace.types import Batch, Request, SamplingParams
from headrace.weight.assemble import make
from headrace.weight.synthetic import random_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--follow", type=int, default=24, help="tokens that are generated after the first")
    parser.add_argument("--specs", nargs="+", default=["lazyllm", "lazyllm:returns=0", "lazyllm:returns=16"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--count", type=int, default=40, help="of passkeys, and of texts")
    parser.add_argument("--part", choices=("speed", "quality", "both"), default="both")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    where = f"{platform.machine()}, level {kernels.isa()}, {kernels.threads()} threads"
    text = (
        f"# Tokens of a prompt that leave between layers (lazyllm)\n\n{where}, {datetime.date.today()}.  \n"
        f"`python {' '.join(sys.argv[:-2] if given.out else sys.argv)}`\n"
    )
    text += "" if given.part == "quality" else speed(given)
    text += "" if given.part == "speed" else quality(given)
    show(text, given.out)


def speed(given: Any) -> str:
    form = make(given.weights)
    set_threads(None, form)
    plain = dataclasses.replace(shapes.architecture(given.shape), context=given.prompt + given.follow + 1)
    weights = random_weights(plain, 0, torch.float32, form=form)
    engines = {"whole": _engine(given, Decoder(plain, weights), {})}
    for spec in given.specs:
        decoder = Decoder(SLOT.make(spec).adapt(plain), weights)
        engines[spec] = _engine(given, decoder, {"skipper": spec})
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for turn in range(given.repetitions + 1):
        for name, engine in engines.items():
            length = given.prompt if turn else given.prompt // 4  # the first one warms up
            times = one(engine, length, given.follow, turn)
            found[name] += [times] if turn else []
    rows = [
        "| prompt | seconds to the first token | against whole | ms per token after it | against whole |",
        "|---|---|---|---|---|",
    ]
    for name, times in found.items():
        first, later = zip(*times, strict=True)
        sooner, faster = (
            Spread.of([whole[i] / own[i] for whole, own in zip(found["whole"], times, strict=True)])
            for i in (0, 1)
        )
        rows.append(
            f"| `{name}` | {Spread.of(first):.2f} | **{sooner:.2f}x** | {Spread.of([1e3 * t for t in later]):.1f} | "
            f"{faster:.2f}x |"
        )
    return (
        f"\nRandom weights of {given.shape}, `{given.weights}`, prompts of {given.prompt} tokens, one at a time, and "
        f"{given.follow} tokens after the first. {given.repetitions} repetitions in turns: median (lowest-highest); "
        "ratios within a repetition.\n\n" + "\n".join(rows) + "\n"
    )


def _engine(given: Any, decoder: Decoder, stack: dict[str, str]) -> Engine:
    config = EngineConfig(
        model=given.shape,
        stack={"weights": given.weights, **stack},
        prefix_cache=False,
        context=decoder.architecture.context,
    )
    return Engine(config, decoder=decoder)


def one(engine: Engine, length: int, follow: int, seed: int) -> tuple[float, float]:
    """Seconds until the first token is there, and for each one after it."""
    prompt = tuple(random.Random(seed).choices(range(engine.architecture.vocab), k=length))
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=1 + follow)
    begin = time.perf_counter()
    engine.add(Request(id="one", prompt=prompt, params=params))
    first = 0.0
    while engine.busy:
        if engine.step() and not first:
            first = time.perf_counter() - begin
    return first, (time.perf_counter() - begin - first) / follow


def quality(given: Any) -> str:
    """Passkeys that the model in the box finds, and bits per byte of text after a long prompt."""
    rows = [
        "| prompt | passkeys found | bits per byte of what follows | more than whole |",
        "|---|---|---|---|",
    ]
    whole: list[tuple[float, float]] = []
    for spec in ("", *given.specs):
        with LLM("tiny", stack={"skipper": spec} if spec else {}, prefix_cache=False) as llm:
            [keys] = accuracy(llm, TASKS["passkey"], given.count, 0)
            shares = [bits(llm, *piece) for piece in pieces(llm, given.count)]
        whole = whole or shares
        bpb = score("ppl", "bits/byte", shares, 0, "")
        more = score(
            "ppl",
            "bits/byte",
            [(a - b, size) for (a, size), (b, _) in zip(shares, whole, strict=True)],
            0,
            "",
        )
        rows.append(
            f"| `{spec or 'whole'}` | {keys.value:.1%} ({keys.low:.1%}-{keys.high:.1%}), {keys.size} | "
            f"{bpb.value:.3f} ({bpb.low:.3f}-{bpb.high:.3f}) | "
            f"{more.value:+.3f} ({more.low:+.3f} to {more.high:+.3f}) |"
        )
    return (
        f"\nThe model in the box, {given.count} passkeys; held-out text, {given.count} times {FOLLOWING} tokens after "
        f"prompts of {BEFORE}. In brackets the 95 % interval.\n\n" + "\n".join(rows) + "\n"
    )


BEFORE, FOLLOWING = 1024, 64
"""Tokens of a prompt, and of the text after it whose likelihood is asked for."""


def pieces(llm: LLM, count: int) -> list[tuple[list[int], list[int]]]:
    """Prompts, and what follows each."""
    ids = llm.tokenizer.encode(held_out_text(), add_special=False)
    whole = range(0, len(ids) - BEFORE - FOLLOWING, BEFORE // 2)
    cut = [(ids[i : i + BEFORE], ids[i + BEFORE : i + BEFORE + FOLLOWING]) for i in whole]
    return cut[:count]


def bits(llm: LLM, prompt: Sequence[int], following: Sequence[int]) -> tuple[float, float]:
    """Bits that the model needs for what follows, and its bytes. The text is said for it: it decodes each token."""
    runner, left, found = llm.engine.runner, list(following), list[float]()
    forward = runner.forward

    def said(batch: Batch) -> Logits:
        logits = forward(batch)
        surely_RV = torch.full_like(logits.logits_RV, -1e4)
        for row, likely_V in enumerate(logits.logits_RV):
            token = left.pop(0)
            found.append(-float(likely_V.double().log_softmax(-1)[token]) / math.log(2))
            surely_RV[row, token] = 0.0
        return logits._replace(logits_RV=surely_RV)

    runner.forward = said  # type: ignore[method-assign]
    try:
        params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=len(following))
        [output] = llm.generate([list(prompt)], params, progress=False)
    finally:
        runner.forward = forward  # type: ignore[method-assign]
    assert list(output.samples[0].token_ids) == list(following)
    return sum(found), float(len(llm.tokenizer.decode_bytes(list(following))))


if __name__ == "__main__":
    main()
