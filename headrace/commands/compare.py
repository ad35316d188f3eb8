"""`headrace compare`: several stacks beside each other, in turns, each turn in a process of its own.

A turn is `headrace bench latency` with the stack's flags, quality is `headrace eval`: every figure is one that these
verbs give alone, and the JSON says with which flags. Turns of all stacks alternate, so that what the machine does
meanwhile meets them all.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.commands import pareto
from headrace.commands.comparison import Contender, Measured, to_json, to_markdown, write_terminal
from headrace.commands.flags import AsJson, Quiet, merged, parse_counts, parse_flags, to_flags
from headrace.commands.output import note, write_json
from headrace.config import EngineConfig
from headrace.errors import ConfigError
from headrace.meter import ProgressBar

TASKS = "ppl,passkey,copy,json"


def compare(
    config: EngineConfig,
    stack: Annotated[
        list[str] | None,
        typer.Option(
            help='A stack as flags beside the common ones: "--weights int4 --kv-codec int8", or "NAME: FLAGS". '
            "Once for each; the first is what others are compared with.",
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Random weights of a model's shape instead of --model: speed and memory only."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Requests at once, such as 1,8.")] = "1,8",
    prompt_len: Annotated[int, typer.Option(min=1, help="Tokens per prompt.")] = 512,
    gen_len: Annotated[int, typer.Option(min=2, help="Tokens to generate.")] = 64,
    repeat: Annotated[int, typer.Option(min=1, max=1000, help="Turns of each stack.")] = 3,
    tasks: Annotated[
        str, typer.Option(help="Of `headrace eval`, the first on the plot; empty for none.")
    ] = TASKS,
    count: Annotated[int, typer.Option("--n", min=1, max=100_000, help="Examples per task.")] = 100,
    plot: Annotated[Path | None, typer.Option(help="Picture of the trade: a .png or .svg file.")] = None,
    out: Annotated[Path | None, typer.Option(help="The table as a Markdown file.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure stacks side by side: speed, memory, quality."""
    contenders = [_contender(text, config, shape) for text in stack or []]
    labels = [contender.label for contender in contenders]
    if len(contenders) < 2 or len(set(labels)) < len(labels):
        raise ConfigError('compare takes two or more different stacks: --stack "" --stack "--weights int4"')
    parse_counts("batch", batch)
    for path in (plot, out):
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.parent}")
    if plot is not None:
        pareto.check(plot)
    case = ["--batch", batch, "--prompt-len", str(prompt_len), "--gen-len", str(gen_len), "--repeat", "1"]
    measured = Measured(contenders, [*case, *(["--shape", shape] if shape else [])], repeat)
    judged = ["--tasks", tasks, "--n", str(count)] if tasks and shape is None else []
    with ProgressBar(repeat * len(contenders) + (len(contenders) if judged else 0), "turns") as bar:
        for line in _measure(measured, judged):
            note(line, quiet)
            bar.advance()
    if out is not None:
        out.write_text(to_markdown(measured, sys.argv[1:]), encoding="utf-8")
    if plot is not None:
        pareto.draw(measured, plot)
    if as_json:
        write_json(to_json(measured))
    else:
        write_terminal(measured)
    failed = [contender for contender in contenders if contender.failure]
    if len(failed) == len(contenders):
        raise ConfigError(f"no stack ran; the first: {failed[0].failure}")


def _contender(text: str, common: EngineConfig, shape: str | None) -> Contender:
    """One --stack. Raises ConfigError for flags that are none; what cannot run shows in its first turn."""
    name, colon, flags = text.partition(":") if not text.lstrip().startswith("-") else ("", "", text)
    if not colon and name.strip():
        raise ConfigError(f"--stack={text!r} is not a list of flags: write --stack '--weights int4'")
    config = merged(common, parse_flags(flags, f"--stack={text!r}"))
    if shape is not None and config.model != EngineConfig().model:
        raise ConfigError(f"--shape {shape} and --model {config.model} both name a model: give one of them")
    return Contender(name.strip() or " ".join(flags.split()) or "defaults", to_flags(config))


def _measure(measured: Measured, judged: Sequence[str]) -> Iterator[str]:
    """All turns; yields a line about each. A stack that fails takes no further turn."""
    for turn in range(measured.repeat):
        for contender in measured.contenders:
            rows = _ask(contender, ["bench", "latency", *measured.case])
            if rows is not None:
                contender.turns.append(rows)
            yield f"turn {turn + 1} of {measured.repeat}, {contender.label}: {contender.failure or 'done'}"
    for contender in measured.contenders if judged else ():
        contender.scores = _ask(contender, ["eval", *judged]) or []
        yield f"quality of {contender.label}: {contender.failure or 'done'}"


def _ask(contender: Contender, verb: Sequence[str]) -> list[dict[str, Any]] | None:
    """The JSON rows of one verb with the contender's flags; None, and the failure noted, if it fails."""
    if contender.failure:
        return None
    command = [sys.executable, "-m", "headrace", *verb, "--json", "--quiet", *contender.flags]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows
    said = [line for line in done.stderr.splitlines() if line.strip()]
    last = said[-1].removeprefix("headrace: error: ") if said else "it said nothing"
    contender.failure = last if done.returncode > 0 else f"ended by signal {-done.returncode}: {last}"
    return None
