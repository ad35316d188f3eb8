"""`headrace bench kernels`: each kernel of a decoder alone, beside the limits of the machine in the same run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.commands.flags import AsJson, Quiet, parse_counts
from headrace.commands.output import note, write, write_json, write_table
from headrace.config import EngineConfig
from headrace.errors import ConfigError
from headrace.limits import Limits, measure
from headrace.meter import ProgressBar, Spread

if TYPE_CHECKING:
    from headrace.commands.kernel_cases import Call, Case, Setting

DEFAULT_SHAPE = "llama-3.2-1b"
MOST_ROWS = 8192
_LEAST_CALLS, _MOST_CALLS = 5, 2000
COLUMNS = ("kernel", "size", "rows", "us", "GB/s", "GOP/s", "of limit", "limit")


def kernels(
    config: EngineConfig,
    shape: Annotated[
        str | None,
        typer.Option(help=f"A model's shape, with random weights. Default without --model: {DEFAULT_SHAPE}."),
    ] = None,
    rows: Annotated[str, typer.Option(help="Rows at once; a list.")] = "1,4,16,64,512",
    contexts: Annotated[str, typer.Option(help="Stored tokens that attention reads; a list.")] = "512,4096",
    seconds: Annotated[
        float, typer.Option(min=0.001, max=60, help="For each kernel and row count, at least five calls.")
    ] = 0.2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time the kernels of a decoder against the machine's limits, measured in the same run.

    Every call reads its operands from memory, not from a cache. "of limit" is the least time that the bytes or the
    operations take on this machine, whichever is more, over the median time; "limit" says which of them.
    """
    setting = prepare(config, shape, parse_counts("rows", rows), parse_counts("contexts", contexts))
    from headrace.commands.kernel_cases import cases, count

    note(_describe(config, shape, setting), quiet)
    limits, timed, last = Limits(0.0, None, None, 0.0), [], ""
    with ProgressBar(count(setting), "kernels") as bar:
        for case, call in cases(setting):
            if case.kernel != last:  # neighbours come and go: the limits are the best of many measurements
                limits, last = limits.best(measure()), case.kernel
            timed.append((case, time_calls(call, case.copies, seconds)))
            bar.advance()
    limits = limits.best(measure())
    rest = _facts(config, shape, setting, limits)
    result = [{**to_row(case, spread, limits), **rest} for case, spread in timed]
    if as_json:
        write_json(result)
        return
    write_table(COLUMNS, [_cells(row) for row in result], numbers=COLUMNS[2:7])
    write(f"limits: {describe_limits(limits)}\n")


def prepare(config: EngineConfig, shape: str | None, rows: list[int], contexts: list[int]) -> Setting:
    """What to measure; sets the number of threads. Raises ConfigError."""
    from headrace.commands.kernel_cases import Setting, working_bytes
    from headrace.compose import compose
    from headrace.forward.memory import set_threads, torch_dtype

    if not config.device.startswith("cpu"):
        raise ConfigError(f"device={config.device}: bench kernels measures processors; use --device cpu")
    if max(rows) > MOST_ROWS:
        raise ConfigError(f"--rows={max(rows)} is beyond {MOST_ROWS}: no step runs so many; lower it")
    model, config = _architecture(config, shape)
    stack = compose(config, model.facts())
    set_threads(config.threads, stack.one("weights"))
    return Setting(model, stack, torch_dtype(config), rows, contexts, config.page_tokens, working_bytes())


def _architecture(config: EngineConfig, shape: str | None) -> tuple[Any, EngineConfig]:
    """What to measure, and the config with the weights that a quantised folder keeps."""
    from headrace import box
    from headrace.commands import shapes
    from headrace.forward.load import describe, settle

    if config.model == EngineConfig().model:
        return shapes.architecture(shape or DEFAULT_SHAPE), config
    if shape is not None:
        raise ConfigError(f"--shape {shape} and --model {config.model} both name a model: give one of them")
    folder = box.path(config.model) if config.model in box.MODELS else config.model
    found = describe(folder)
    return found.architecture, settle(config, found)


def time_calls(call: Call, copies: int, seconds: float) -> Spread:
    """Seconds per call, after two to warm up."""
    for i in range(2):
        call(i % copies)
    times: list[float] = []
    end, i = time.perf_counter() + seconds, 2
    while len(times) < _LEAST_CALLS or (len(times) < _MOST_CALLS and time.perf_counter() < end):
        begin = time.perf_counter()
        call(i % copies)
        times.append(time.perf_counter() - begin)
        i += 1
    return Spread.of(times)


def to_row(case: Case, spread: Spread, limits: Limits) -> dict[str, Any]:
    """Microseconds, 10^9 bytes and operations per second, and what they are of the limit that binds."""
    least, limit = limits.seconds(case.read_bytes, case.operations, case.arithmetic)
    return {
        "kernel": case.kernel,
        "size": case.size,
        "rows": case.rows,
        "us": spread.median * 1e6,
        "read_bytes": round(case.read_bytes),
        "operations": round(case.operations),
        "gb_s": case.read_bytes / spread.median / 1e9,
        "gop_s": case.operations / spread.median / 1e9,
        "fraction": least / spread.median,
        "limit": limit,
        "copies": case.copies,
        "spread": {"us": [spread.low * 1e6, spread.high * 1e6]},
    }


def describe_limits(limits: Limits) -> str:
    """All limits in one line."""
    names = {"read_gb_s": "read", "int8_gop_s": "int8", "bf16_gop_s": "bf16", "float32_gop_s": "float32"}
    units = {"read_gb_s": "GB/s"}
    parts = [f"{names[name]} {value:.0f} {units.get(name, 'GOP/s')}" for name, value in limits.row().items()]
    return ", ".join(parts)


def _facts(config: EngineConfig, shape: str | None, setting: Setting, limits: Limits) -> dict[str, Any]:
    from headrace import kernels as native

    return {
        "model": _name(config, shape),
        "weights": setting.stack.spec("weights"),
        "kv_codec": setting.stack.spec("kv-codec"),
        "threads": native.threads(),
        "isa": native.isa(),
        "dtype": str(setting.dtype).removeprefix("torch."),
        "limits": limits.row(),
    }


def _describe(config: EngineConfig, shape: str | None, setting: Setting) -> str:
    from headrace import kernels as native

    stack = f"--weights {setting.stack.spec('weights')} --kv-codec {setting.stack.spec('kv-codec')}"
    where = f"{native.threads()} threads, {native.isa()}"
    return f"{_name(config, shape)} (random weights), {where}, {setting.working >> 20} MiB of copies: {stack}"


def _name(config: EngineConfig, shape: str | None) -> str:
    return config.model if config.model != EngineConfig().model else shape or DEFAULT_SHAPE


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = row["spread"]["us"]
    return [
        row["kernel"],
        row["size"],
        str(row["rows"]),
        f"{row['us']:.0f} ({low:.0f}-{high:.0f})",
        f"{row['gb_s']:.1f}",
        f"{row['gop_s']:.0f}",
        f"{row['fraction']:.0%}",
        row["limit"],
    ]
