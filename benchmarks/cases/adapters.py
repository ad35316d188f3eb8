"""What do adapters cost? Steps of a decoding batch with none, with one for all, and with one for each sequence.

Random LoRA adapters on every linear layer, interleaved in one run. Steps are measured once they are played back from a
recording, with adapters as without.

    python benchmarks/cases/adapters.py [--shape llama-3.2-1b] [--weights int4] [--batch 8] [--rank 16] [--out FILE]

Claim   https://arxiv.org/abs/2310.18547 (Punica), https://arxiv.org/abs/2311.03285 (S-LoRA): many adapters in one batch
        cost little more than none.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import platform
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from result import show
from safetensors.torch import save_file

from headrace import kernels
from headrace.architecture import Architecture
from headrace.commands import shapes
from headrace.commands.bench import start
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.forward.load import names_of
from headrace.forward.recording import TIMES_WITH_ADAPTERS
from headrace.limits import read_bandwidth
from headrace.meter import Spread
from headrace.types import Request, SamplingParams
from headrace.weight.adapter import sites

WARM = TIMES_WITH_ADAPTERS + 1
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}


def write_adapter(folder: Path, architecture: Architecture, rank: int, dtype: torch.dtype, seed: int) -> None:
    """A PEFT folder with random numbers for every linear layer."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, site in sites(architecture, names_of(None, architecture)).items():
        for side, shape in (("A", (rank, site.inputs)), ("B", (site.outputs, rank))):
            numbers = torch.randn(*shape, generator=draw) / shape[1] ** 0.5 / 4
            tensors[f"base_model.model.{module}.lora_{side}.weight"] = numbers.to(dtype)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def steps(engine: Engine, adapters: list[str], prompt_len: int, count: int, seed: int) -> list[float]:
    """Seconds of each step in which all sequences decode, one per adapter name (empty: none)."""
    draw = random.Random(seed)
    params = SamplingParams(temperature=0, max_tokens=count + WARM + 1, ignore_eos=True)
    vocab = range(engine.architecture.vocab)
    for i, adapter in enumerate(adapters):
        prompt = tuple(draw.choices(vocab, k=prompt_len))
        engine.add(Request(id=str(i), prompt=prompt, params=params, adapter=adapter))
    found, decoding = [], False
    while engine.busy:
        begin = time.perf_counter()
        deltas = engine.step()
        if decoding:
            found.append(time.perf_counter() - begin)
        decoding = len(deltas) == len(adapters)
    return found[WARM:]


def mixes(batch: int) -> Iterator[tuple[str, list[str]]]:
    """What is compared, the base first."""
    yield "none", [""] * batch
    for name in DTYPES:
        yield f"1, {name}", [f"{name}-0"] * batch
        yield f"{batch}, {name}", [f"{name}-{i}" for i in range(batch)]


def table(found: dict[str, list[list[float]]], engine: Engine) -> str:
    """Markdown: medians of the repetitions' medians, with the lowest and the highest; ratios within a repetition."""
    base = [Spread.of(repeat).median for repeat in found["none"]]
    rows = [
        "| adapters | step, ms | of the step without | fastest step, ms | MiB of adapters |",
        "|---|---|---|---|---|",
    ]
    names = dict(mixes(engine.budget.max_seqs))
    for mix, repeats in found.items():
        medians = [Spread.of(repeat).median for repeat in repeats]
        step = Spread.of([1000 * value for value in medians])
        ratio = Spread.of([value / without for value, without in zip(medians, base, strict=True)])
        used = {engine.adapters.find(name) for name in names[mix] if name}
        size = sum(adapter.nbytes for adapter in used) / 2**20
        rows.append(
            f"| {mix} | {step.median:.1f} ({step.low:.1f}-{step.high:.1f}) "
            f"| **{ratio.median:.2f}x** ({ratio.low:.2f}-{ratio.high:.2f}) "
            f"| {1000 * min(map(min, repeats)):.1f} | {size:.0f} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--kv-codec", default="bf16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--prompt-len", type=int, default=16)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    architecture = shapes.architecture(given.shape)
    with tempfile.TemporaryDirectory() as folder:
        adapters = {}
        for (name, dtype), i in itertools.product(DTYPES.items(), range(given.batch)):
            adapters[f"{name}-{i}"] = str(Path(folder) / f"{name}-{i}")
            write_adapter(Path(folder) / f"{name}-{i}", architecture, given.rank, dtype, i)
        stack = {"weights": given.weights, "kv-codec": given.kv_codec}
        config = EngineConfig(
            stack=stack, threads=given.threads, adapters=adapters, adapter_bytes=8 << 30, max_seqs=given.batch
        )
        engine = start(config, given.shape, [(given.batch, given.prompt_len, given.steps + WARM + 1)])
        found: dict[str, list[list[float]]] = {mix: [] for mix, _ in mixes(given.batch)}
        for repetition in range(-1, given.repetitions):  # the first round loads the adapters and warms up
            for mix, names in mixes(given.batch):
                taken = steps(engine, names, given.prompt_len, given.steps, repetition)
                if repetition >= 0:
                    found[mix].append(taken)
    bandwidth = read_bandwidth() / 1e9
    command = " ".join(
        f"--{key.replace('_', '-')} {value}" for key, value in vars(given).items() if value and key != "out"
    )
    text = (
        f"# The cost of adapters: LoRA of rank {given.rank} on every linear layer, batch {given.batch}\n\n"
        f"`{given.shape}`, {platform.machine()}, level {kernels.isa()}, {kernels.threads()} threads, "
        f"{datetime.date.today()}; memory read {bandwidth:.1f} GB/s after the run. {given.repetitions} interleaved "
        f"repetitions of {given.steps} steps: median (lowest-highest) of their medians.  \n"
        f"`python benchmarks/cases/adapters.py {command}`\n\n{table(found, engine)}\n"
    )
    show(text, given.out)


if __name__ == "__main__":
    main()
