"""`headrace eval`: score a model on tasks with exact answers and on held-out text."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.commands.flags import AsJson, Quiet, merged, parse_flags
from headrace.commands.output import note, write_json, write_table
from headrace.commands.start import start
from headrace.config import EngineConfig
from headrace.errors import ConfigError, nearest

if TYPE_CHECKING:
    from headrace.box.evaluate import Score

DRAFTS = {"tiny": "tiny-draft"}
"""The draft model that `agreement` compares a model in the box with."""
DRIFT = "drift"
COLUMNS = ("task", "metric", "size", "n", "value", "95 % interval", "card")


def evaluate(
    config: EngineConfig,
    tasks: Annotated[
        str | None,
        typer.Option(help="ppl, passkey, key_value, ..., drift. Default: all that apply, but for drift."),
    ] = None,
    task_file: Annotated[
        list[Path] | None,
        typer.Option(help="Your own task, a JSON object with prompt and answer per line; may be repeated."),
    ] = None,
    count: Annotated[int, typer.Option("--n", min=1, max=100_000, help="Examples per task.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the examples.")] = 0,
    draft: Annotated[str | None, typer.Option(help="Second model for the task agreement.")] = None,
    reference: Annotated[
        str,
        typer.Option(
            help="Flags that the task drift compares with, beside --model. Default: nothing compressed."
        ),
    ] = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score a model on tasks with exact answers and on held-out text."""
    from headrace.box import drift
    from headrace.box import evaluate as box
    from headrace.box import task_file as files

    draft = draft or DRAFTS.get(config.model)
    names = _names(tasks, task_file, draft is not None)
    for path in task_file or ():
        files.read(path)  # what is wrong with one shows before anything is loaded
    with ExitStack() as opened:
        llm = opened.enter_context(start(config, quiet))
        other = None
        if "agreement" in names and draft is not None:
            other = opened.enter_context(start(dataclasses.replace(config, model=draft), quiet))
        rows = []
        figures = box.read_card(llm.tokenizer.folder)
        if other is not None and draft == DRAFTS.get(config.model):
            theirs = box.read_card(other.tokenizer.folder)
            figures.update((key, theirs[key]) for key in theirs if key.startswith("agreement "))
        found = [box.evaluate(llm, [n for n in names if n != DRIFT], count=count, seed=seed, draft=other)]
        if DRIFT in names:
            plain = dataclasses.replace(config, stack={})
            exact = opened.enter_context(start(merged(plain, parse_flags(reference, "--reference")), quiet))
            found.append(drift.drift(llm, exact, count, seed))
        found += [files.evaluate(llm, path, count, seed) for path in task_file or ()]
        for score in itertools.chain(*found):
            rows.append(to_json(score, figures))
            note(f"{score.task} {score.metric} {score.value:.4g}", quiet or as_json)
    if as_json:
        write_json(rows)
    else:
        write_table(COLUMNS, [_cells(row) for row in rows], numbers=("n", "value", "card"))


def to_json(score: Score, figures: dict[str, float]) -> dict[str, Any]:
    """One row; `card` is the model card's figure, absent where there is none."""
    row = dataclasses.asdict(score)
    row["n"] = row.pop("count")
    key = f"{score.task} {score.metric}"
    return {**row, "card": figures[key]} if key in figures else row


def _names(text: str | None, own: Sequence[Path] | None, drafted: bool) -> list[str]:
    from headrace.box.evaluate import KNOWN

    if text is None:
        return [] if own else [name for name in KNOWN if drafted or name != "agreement"]
    known = (*KNOWN, DRIFT)
    names = [part.strip() for part in text.split(",") if part.strip()]
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None or not names:
        raise ConfigError(
            f"--tasks={text!r}: no task called {unknown or ''!r}; {nearest(unknown or '', known)}"
        )
    if "agreement" in names and not drafted:
        raise ConfigError("--tasks agreement compares two models: name the second with --draft")
    return names


def _cells(row: dict[str, Any]) -> list[str]:
    interval = f"{row['low']:.3f} to {row['high']:.3f}"
    card = f"{row['card']:.3f}" if "card" in row else ""
    return [row["task"], row["metric"], row["size"], str(row["n"]), f"{row['value']:.3f}", interval, card]
