"""`headrace quantize`: choose the codes of a model's weights with a recipe, and write them as a folder that runs."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.commands.flags import AsJson, Quiet
from headrace.commands.output import note, write_json, write_table
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from headrace.weight.calibrate import Report, Source, Target

MAX_TEXT = 256 << 20
"""Largest file of calibration text, bytes."""


def quantize(
    out: Annotated[
        Path, typer.Option(help="Folder to write; empty, or of the same run, which then goes on.")
    ],
    recipe: Annotated[
        str, typer.Option(help="How codes are chosen: `headrace techniques recipe` lists all.")
    ],
    weights: Annotated[str, typer.Option(help="Format of codes, such as int4:group=128.")],
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="A model in the box (tiny, tiny-draft) or a Hugging Face folder."),
    ] = "tiny",
    text: Annotated[
        Path | None,
        typer.Option(help="Calibration text, UTF-8. Default: sentences, tasks and source code made here."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=100_000, help="Texts to calibrate on.")] = 128,
    tokens: Annotated[int, typer.Option(min=8, max=1 << 20, help="Tokens of each.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the choice of texts.")] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="CPU threads. Default: every core.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Choose the codes of a model's weights, and write a folder that runs."""
    from headrace.forward.calibration import BlockPass
    from headrace.forward.memory import set_threads
    from headrace.meter import ProgressBar
    from headrace.weight.calibrate import Target, quantise
    from headrace.weight.formats import SLOT as FORMATS
    from headrace.weight.recipes import SLOT as RECIPES

    begin = time.monotonic()
    made, form = RECIPES.make(recipe), FORMATS.make(weights)
    how = Target(made, form, RECIPES.spec_of(made), FORMATS.spec_of(form))
    source = _source(model, out)
    how.plan(source.architecture)  # what cannot be is said before anything is read
    set_threads(threads, FORMATS.make("plain"))
    ids_ST = _texts(source, made.calibrated, text, samples, tokens, seed)
    if made.calibrated:
        count, length = ids_ST.shape
        note(f"{how.recipe_spec} for {how.weights_spec}, on {count} texts of {length} tokens", quiet)
    with ProgressBar(None, "quantising") as bar:
        report = quantise(source, how, ids_ST, out, BlockPass, bar.update)
    _show(how, report, ids_ST, out, time.monotonic() - begin, as_json)
    if report.resumed:
        note(f"{report.resumed} of {report.pieces} files were there already, from a run that ended", quiet)
    note(f"written to {out}: run it with --model {out}", quiet)


def _show(how: Target, report: Report, ids_ST: Tensor, out: Path, seconds: float, as_json: bool) -> None:
    if as_json:
        facts = dataclasses.asdict(report)
        write_json(
            {
                "out": str(out),
                "weights": how.weights_spec,
                "recipe": how.recipe_spec,
                "texts": ids_ST.shape[0],
                "tokens": ids_ST.shape[1],
                **facts,
                "seconds": seconds,
            }
        )
        return
    sizes = [f"{size / 1e6:,.1f} MB" for size in (report.bytes_before, report.bytes_after)]
    write_table(
        ("recipe", "weights", "before", "after", "seconds"),
        [[how.recipe_spec, how.weights_spec, *sizes, f"{seconds:.1f}"]],
        numbers=("before", "after", "seconds"),
    )


def _source(model: str, out: Path) -> Source:
    """The model, if it can be quantised. Raises ConfigError."""
    from headrace import box
    from headrace.forward.load import describe
    from headrace.weight.calibrate import Source
    from headrace.weight.config import read_json

    found = describe(box.path(model) if model in box.MODELS else Path(model))
    if found.note is not None:
        raise ConfigError(
            f"{found.folder} is quantised already ({found.note.weights}, {found.note.recipe}): quantise the model that "
            "it was made from"
        )
    if out.resolve() == found.folder.resolve():
        raise ConfigError(f"--out={out} is the model's own folder: name another")
    config = read_json(found.folder / "config.json")
    return Source(found.folder, config, found.architecture, found.family.names)


def _texts(source: Source, wanted: bool, text: Path | None, samples: int, tokens: int, seed: int) -> Tensor:
    """int64 [S, T]; of a recipe that needs none, no rows. Raises ConfigError."""
    import torch

    from headrace.box.calibration import cut, draw
    from headrace.text.tokenizer import Tokenizer

    if not wanted:
        if text is not None:
            raise ConfigError(f"--text={text}: this recipe calibrates nothing: leave it out")
        return torch.empty(0, 0, dtype=torch.int64)
    tokenizer = Tokenizer(source.folder)
    length = min(tokens, source.architecture.context)
    first = [] if tokenizer.bos is None else [tokenizer.bos]

    def encode(piece: str) -> list[int]:
        return tokenizer.encode(piece, add_special=False, parse_special=False)

    rows = (
        draw(encode, first, samples, length, seed)
        if text is None
        else cut(encode(_read(text)), first, samples, length, seed)
    )
    if not rows:
        raise ConfigError(
            f"--text={text} has fewer than {length} tokens: name a longer one, or lower --tokens"
        )
    ids_ST = torch.tensor(rows)
    if int(ids_ST.max()) >= source.architecture.vocab:
        raise ConfigError(
            f"{source.folder}: its tokenizer has tokens beyond the model's {source.architecture.vocab}"
        )
    return ids_ST


def _read(text: Path) -> str:
    try:
        if text.stat().st_size > MAX_TEXT:
            raise ConfigError(f"--text={text} is larger than {MAX_TEXT} bytes: give a part of it")
        return text.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read --text={text}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--text={text} is not UTF-8 text") from None
