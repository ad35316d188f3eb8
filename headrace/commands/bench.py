"""`headrace bench latency`: prompts and decoding timed, one row per batch size, prompt length and output length."""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.commands.flags import AsJson, Quiet, parse_counts
from headrace.commands.output import note, write_json, write_table
from headrace.config import EngineConfig
from headrace.errors import ConfigError
from headrace.limits import read_bandwidth
from headrace.meter import ProgressBar, Spread, peak_rss_bytes, percentile

if TYPE_CHECKING:
    from headrace.engine import Engine

NUMBERS = (
    "batch",
    "prompt",
    "output",
    "prefill tok/s",
    "decode tok/s",
    "first token s",
    "step p50 ms",
    "p99",
    "max",
    "GB/s",
)


def latency(
    config: EngineConfig,
    batch: Annotated[str, typer.Option(help="Requests at once, such as 1,4,16.")] = "1",
    prompt_len: Annotated[str, typer.Option(help="Tokens per prompt; a list, too.")] = "512",
    gen_len: Annotated[str, typer.Option(help="Tokens to generate; a list, too.")] = "64",
    repeat: Annotated[
        int, typer.Option(min=1, max=1000, help="Measured repetitions, after short runs to warm up.")
    ] = 3,
    shape: Annotated[
        str | None,
        typer.Option(help="Random weights of a model's shape instead of --model: llama-3.2-1b, ..."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random prompts.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time prompts and decoding: greedy, end tokens ignored.

    Every repetition has new prompts, so the prefix cache never shortens them. Decoding is timed in a second run of the
    same prompts, which finds most of their keys and values in the cache: so all requests decode together.
    """
    cases = list(
        itertools.product(
            parse_counts("batch", batch),
            parse_counts("prompt-len", prompt_len),
            parse_counts("gen-len", gen_len),
        )
    )
    engine = start(config, shape, cases)
    note(engine.describe() + (" (random weights)" if shape else ""), quiet)
    rows = []
    with ProgressBar(len(cases) * (repeat + 1), "runs") as bar:
        for case in cases:
            rows.append(measure(engine, Case(*case), repeat, random.Random(seed), bar))
    if engine.device.type == "cpu":
        bandwidth = read_bandwidth()  # last: what it allocates is not the engine's peak
        for row in rows:
            if "read_gb_s" in row:
                row["roofline_fraction"] = row["read_gb_s"] * 1e9 / bandwidth
    engine.close()
    if as_json:
        write_json(rows)
    else:
        write_table(NUMBERS, [_cells(row) for row in rows], numbers=NUMBERS)


WARM_PROMPT, WARM_TOKENS = 32, 4
"""A batch of these goes before what is measured: memory that is first touched, caches, the processor's clock."""


@dataclass(frozen=True)
class Case:
    """What one row measures."""

    batch: int
    prompt_len: int
    gen_len: int


@dataclass(frozen=True)
class Run:
    """One repetition. Seconds, from the moment that all requests are queued."""

    ttft_s: float
    """To the first token of the median request."""
    prefill_s: float
    """Until every request has its first token."""
    decode_s: float
    """From there to the end."""
    decode_tokens: int
    """Generated in decode_s."""
    steps_s: tuple[float, ...]
    """Each step of decode_s: the gap that a reader sees between two tokens."""


def start(config: EngineConfig, shape: str | None, cases: Sequence[tuple[int, int, int]]) -> Engine:
    """An engine that takes the largest case: a pool for the whole batch. Raises ConfigError."""
    from headrace.commands import shapes
    from headrace.compose import compose
    from headrace.engine import Engine
    from headrace.forward.load import adapt
    from headrace.forward.load import random as random_decoder
    from headrace.forward.memory import set_threads, torch_device, torch_dtype

    longest = max(prompt + output for _, prompt, output in cases)
    context = config.context
    most = max(batch for batch, _, _ in cases)
    config = dataclasses.replace(config, context=context, max_seqs=max(config.max_seqs, most))
    decoder = None
    with ProgressBar(None, "loading") as bar:
        if shape is not None:
            if config.model != EngineConfig().model:
                raise ConfigError(
                    f"--shape {shape} and --model {config.model} both name a model: give one of them"
                )
            model = dataclasses.replace(shapes.architecture(shape), context=context or longest + 1)
            config = dataclasses.replace(config, model=shape)
            stack = compose(config, model.facts())
            form, tier, model = stack.one("weights"), stack.one("weight-tier"), adapt(model, stack, None)
            set_threads(config.threads, form)
            dtype, device = torch_dtype(config), torch_device(config.device)
            decoder = random_decoder(model, 0, dtype, device, bar.update, form=form, tier=tier)
        engine = Engine(config, decoder=decoder, progress=bar.update)
    if longest > engine.context:
        raise ConfigError(
            f"{longest} tokens of prompt and output do not fit in the context of {engine.context}: "
            "lower --prompt-len or --gen-len"
        )
    return _with_room(engine, most, longest)


def _with_room(engine: Engine, batch: int, longest: int) -> Engine:
    """The engine; or one with the same weights and a larger pool, if its default pool does not hold `batch` sequences
    of `longest` tokens."""
    from headrace.engine import Engine
    from headrace.forward.memory import pages_for

    groups, sizes = engine.kv.tables.groups, engine.kv.tables.sizes
    pages = batch * pages_for(groups, sizes, longest, engine.policy.longest_span)
    needed = pages * sizes.page_bytes
    if engine.config.kv_bytes is not None or pages <= engine.stats().pages:
        return engine

    return Engine(dataclasses.replace(engine.config, kv_bytes=needed), decoder=engine.decoder)


def measure(engine: Engine, case: Case, repeat: int, rng: random.Random, bar: ProgressBar) -> dict[str, Any]:
    """One row. Medians over the repetitions, gaps between tokens over all; what was not measured is absent."""
    prefills, decodes = [], []

    def prompts(batch: int, length: int) -> list[tuple[int, ...]]:
        return [tuple(rng.choices(range(engine.architecture.vocab), k=length)) for _ in range(batch)]

    time_once(engine, prompts(1, case.prompt_len), 1)
    time_once(engine, prompts(case.batch, min(WARM_PROMPT, case.prompt_len)), min(WARM_TOKENS, case.gen_len))
    bar.advance()
    for _ in range(repeat):
        fresh = prompts(case.batch, case.prompt_len)
        prefills.append(time_once(engine, fresh, 1))
        run = time_once(engine, fresh, case.gen_len) if case.gen_len > 1 else None
        decodes += [run] if run and run.decode_tokens else []
        bar.advance()
    measured = {
        "prefill_tok_s": [case.batch * case.prompt_len / run.prefill_s for run in prefills],
        "decode_tok_s": [run.decode_tokens / run.decode_s for run in decodes],
        "ttft_s": [run.ttft_s for run in prefills],
    }
    spreads = {name: Spread.of(values) for name, values in measured.items() if values}
    row: dict[str, Any] = {**dataclasses.asdict(case), **{name: s.median for name, s in spreads.items()}}
    steps = [step for run in decodes for step in run.steps_s]
    if steps:
        row.update(itl_p50_s=percentile(steps, 0.5), itl_p99_s=percentile(steps, 0.99), itl_max_s=max(steps))
    row.update(weight_bytes=engine.decoder.weight_bytes, kv_bytes_per_token=engine.kv.bytes_per_token())
    row["prefill_gop_s"] = row["prefill_tok_s"] * operations_per_token(engine) / 1e9
    read = bytes_per_step(engine, case)
    if steps and read is not None:
        row["read_gb_s"] = read / row["itl_p50_s"] / 1e9
    spread = {name: [s.low, s.high] for name, s in spreads.items()}
    return {**row, **_setting(engine), "spread": spread, "repetitions": repeat}


def time_once(engine: Engine, prompts: Sequence[tuple[int, ...]], gen_len: int) -> Run:
    """Runs a batch from start to end."""
    from headrace.params import SamplingParams
    from headrace.types import Request

    params = SamplingParams(temperature=0, max_tokens=gen_len, ignore_eos=True)
    begin = time.perf_counter()
    for i, prompt in enumerate(prompts):
        engine.add(Request(id=f"bench-{i}", prompt=prompt, params=params))
    first: dict[str, float] = {}
    prefill_s = before = 0.0
    steps: list[float] = []
    decode_tokens = 0
    while engine.busy:
        deltas = engine.step()
        now = time.perf_counter() - begin
        if prefill_s:
            steps.append(now - before)
            decode_tokens += sum(len(delta.tokens) for delta in deltas)
        for delta in deltas:
            first.setdefault(delta.request, now)
        if not prefill_s and len(first) == len(prompts):
            prefill_s = now
        before = now
    ttft = percentile(list(first.values()), 0.5)
    return Run(ttft, prefill_s, before - prefill_s, decode_tokens, tuple(steps))


def operations_per_token(engine: Engine) -> int:
    """Multiplications and additions of a prompt's token with the matrices of the blocks: no attention, no head."""
    total = 0
    for block in engine.architecture.blocks:
        a, mlp, width = block.attention, block.mlp, engine.architecture.width
        total += 2 * width * a.head_size * (2 * a.heads + 2 * a.kv_heads)
        total += 2 * width * 3 * mlp.width * max(mlp.active, 1) + 2 * width * mlp.experts
    return total


def bytes_per_step(engine: Engine, case: Case) -> float | None:
    """Weights, keys and values that a decoding step of the batch reads, half-way through the output.

    None for models with experts: which of them a step reads is not known here.
    """
    model = engine.architecture
    if any(block.mlp.experts for block in model.blocks):
        return None
    # An embedding that is not also the head is not read whole: one row per token.
    table = 0 if model.tied_head else engine.decoder.embed.table.nbytes
    tokens = case.batch * (case.prompt_len + case.gen_len / 2)
    return engine.decoder.weight_bytes - table + tokens * engine.kv.bytes_per_token()


def checkpoint_bytes(folder: Path) -> int:
    """Size of the weights in a model's folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _setting(engine: Engine) -> dict[str, Any]:

    from headrace import kernels

    return {
        "model": engine.config.model,
        **({} if engine.path is None else {"file_bytes": checkpoint_bytes(engine.path)}),
        "peak_rss_bytes": peak_rss_bytes(),
        "threads": kernels.threads(),
        "isa": kernels.isa(),
        "dtype": str(engine.decoder.dtype).removeprefix("torch."),
        "stack": engine.stack.describe(),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    def rate(name: str) -> str:
        if name not in row:
            return ""
        low, high = row["spread"][name]
        return f"{row[name]:.1f} ({low:.1f}-{high:.1f})"

    steps = [
        f"{row[name] * 1e3:.2f}" if name in row else "" for name in ("itl_p50_s", "itl_p99_s", "itl_max_s")
    ]
    speed = f"{row['read_gb_s']:.1f}" if "read_gb_s" in row else ""
    case = [str(row[name]) for name in ("batch", "prompt_len", "gen_len")]
    return [*case, rate("prefill_tok_s"), rate("decode_tok_s"), f"{row['ttft_s']:.3f}", *steps, speed]
