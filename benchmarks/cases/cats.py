"""What is saved when neurons leave? Decoding steps with every neuron, and with those whose gates hardly open left out.

Steps of one sequence, at a short context, in turns, of each turn the fastest: what else a machine does only adds time.
Thresholds come from the same random weights, on other tokens. Then the
drift of the model in the box, with thresholds that `headrace profile` finds.

    python benchmarks/cases/cats.py [--shape llama-3.2-1b] [--weights bf16] [--sparsity 0,0.5,0.7] [--out FILE]

Claim   https://arxiv.org/abs/2404.08763 (CATS): 15 % less time per token at 50 %
Target  at 50 %, decoding is at least 1.25 times as fast as dense
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from result import show

from headrace import LLM, kernels
from headrace.box.drift import drift
from headrace.box.evaluate import bits_per_byte
from headrace.commands import shapes
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.forward.batch import one_text
from headrace.forward.decoder import Decoder
from headrace.forward.memory import set_threads
from headrace.forward.neurons import thresholds, watch, write_profile
from headrace.kernels.before import apply
from headrace.kv.heads import Probe
from headrace.meter import Spread
from headrace.types import Request, SamplingParams
from headrace.weight.assemble import make
from headrace.weight.synthetic import random_weights

CONTEXT, PROMPT, WARM = 256, 32, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--weights", default="bf16")
    parser.add_argument("--sparsity", default="0,0.5,0.7")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=12, help="of held-out text, for the drift")
    parser.add_argument("--part", choices=("speed", "drift", "both"), default="both")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    shares = [float(share) for share in given.sparsity.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        text = "" if given.part == "drift" else speed(given, shares, Path(folder) / "shape.json")
        text += "" if given.part == "speed" else quality(given, shares, Path(folder) / "tiny.json")
    show(text, given.out)


def speed(given: Any, shares: list[float], profile: Path) -> str:
    torch.set_grad_enabled(False)
    form = make(given.weights)
    set_threads(None, form)
    model = dataclasses.replace(shapes.architecture(given.shape), context=CONTEXT)
    whole = random_weights(model, 0, torch.float32, form=form)
    write_profile(profile, model, looked_at(Decoder(model, whole), 1))
    engines, made, weights = {"dense": _engine(given, Decoder(model, whole), None)}, {}, None
    for share in shares:
        spec = f"cats:profile={profile},sparsity={share}"
        limits = thresholds(str(profile), model, share)
        blocks = tuple(
            dataclasses.replace(block, mlp=dataclasses.replace(block.mlp, threshold=limit))
            for block, limit in zip(model.blocks, limits, strict=True)
        )
        cut = dataclasses.replace(model, blocks=blocks)
        weights = weights or random_weights(cut, 0, torch.float32, form=form)
        made[f"cats, {share:.0%}"] = left(Decoder(cut, weights), 2)
        engines[f"cats, {share:.0%}"] = _engine(given, Decoder(cut, weights), spec)
    found: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(given.repetitions + 1):
        for name, engine in engines.items():
            times = steps(engine, given.steps, turn)
            if turn:  # the first one warms up
                found[name].append(min(times))
    rows = [f"| {'stack':12} | neurons that left | ms per step | speed of dense |", "|---|---|---|---|"]
    for name, times in found.items():
        ms, ratio = (
            Spread.of([1e3 * t for t in times]),
            Spread.of([d / t for d, t in zip(found["dense"], times, strict=True)]),
        )
        share = f"{made[name]:.1%}" if name in made else ""
        rows.append(
            f"| {name} | {share} | {ms.median:.1f} ({ms.low:.1f}-{ms.high:.1f}) | "
            f"**{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})x** |"
        )
    where = (
        f"{platform.machine()}, level {kernels.isa()}, {kernels.threads()} threads, {datetime.date.today()}."
    )
    return (
        f"# Neurons that leave (cats)\n\n{where}  \n`python {' '.join(sys.argv[:-2] if given.out else sys.argv)}`\n\n"
        f"Random weights of {given.shape}, `{given.weights}`; one sequence, contexts of {PROMPT} to {CONTEXT} tokens. "
        f"{given.repetitions} repetitions in turns, {given.steps} steps each, of which the fastest counts: median "
        "(lowest-highest); ratios within a repetition.\n\n" + "\n".join(rows) + "\n"
    )


def quality(given: Any, shares: list[float], profile: Path) -> str:
    """Bits per byte and drift of the model in the box."""
    command = ["profile", "--of", "neurons", "--model", "tiny", "--out", str(profile), "--quiet"]
    subprocess.run([sys.executable, "-m", "headrace", *command], check=True, stdout=subprocess.DEVNULL)
    rows = ["| stack | bits per byte | KL, nats per token | same token |", "|---|---|---|---|"]
    with LLM("tiny", stack={"weights": given.weights}) as exact:
        plain = bits_per_byte(exact, given.chunks, 0)
        rows.append(f"| dense | {plain.value:.3f} ({plain.low:.3f}-{plain.high:.3f}) | | |")
        for share in shares:
            stack = {"weights": given.weights, "skipper": f"cats:profile={profile},sparsity={share}"}
            with LLM("tiny", stack=stack) as llm:
                bits = bits_per_byte(llm, given.chunks, 0)
                kl, same, _ = drift(llm, exact, given.chunks, 0)
            rows.append(
                f"| cats, {share:.0%} | {bits.value:.3f} ({bits.low:.3f}-{bits.high:.3f}) | {kl.value:.4f} | "
                f"{same.value:.1%} |"
            )
    return (
        "\nThe model in the box, on text that it was not trained on; thresholds from a module that it was.\n\n"
        + "\n".join(rows)
        + "\n"
    )


def looked_at(decoder: Decoder, seed: int) -> list[list[float]]:
    """Quantiles of a decoder's gates on random tokens."""
    found = watch(decoder)
    _forward(decoder, seed)
    return found


def left(decoder: Decoder, seed: int) -> float:
    """The share of neurons that leave, on random tokens."""
    found: list[float] = []
    for block in decoder.blocks:
        block.mlp = _counted(block.mlp, found)
    _forward(decoder, seed)
    return statistics.mean(found)


def _counted(mlp: Any, found: list[float]) -> Any:
    def call(x: Any, before: Any = None, add: Any = None, mix: Any = None) -> Any:
        gate = mlp.gate(x, before)
        act = apply(mlp.activation, torch.cat((gate, torch.ones_like(gate)), 1))
        found.append(float((act.abs() < mlp.threshold).float().mean()))
        return mlp(x, before, add, mix)

    return call


def _forward(decoder: Decoder, seed: int) -> None:
    ids = random.Random(seed).choices(range(decoder.architecture.vocab), k=64)
    decoder.forward(one_text(torch.tensor(ids, device=decoder.device)), Probe(decoder.architecture, 32))


def _engine(given: Any, decoder: Decoder, skipper: str | None) -> Engine:
    stack = {"weights": given.weights} | ({"skipper": skipper} if skipper else {})
    return Engine(EngineConfig(stack=stack, prefix_cache=False, kv_bytes=64 << 20), decoder=decoder)


def steps(engine: Engine, count: int, seed: int) -> list[float]:
    """Seconds of decoding steps of one sequence."""
    prompt = tuple(random.Random(seed).choices(range(engine.architecture.vocab), k=PROMPT))
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=1 + WARM + count)
    engine.add(Request(id="one", prompt=prompt, params=params))
    engine.step()
    found = []
    while engine.busy:
        begin = time.perf_counter()
        engine.step()
        found.append(time.perf_counter() - begin)
    return found[WARM:]


if __name__ == "__main__":
    main()
