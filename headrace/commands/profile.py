"""`headrace profile`: what is to be known of a model before parts of it may be left out.

heads    which of them look far back, for `--kv-layout duo`: found with repeated random tokens
neurons  how far the gates of its MLPs open, for `--skipper cats`: found on some text
"""

from __future__ import annotations

import argparse
import random
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.commands.flags import AsJson, Quiet
from headrace.commands.output import note, write_json, write_table
from headrace.commands.start import start
from headrace.config import EngineConfig
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.llm import LLM

PERIODS = 3
MAX_TEXT = 64 << 20
SHARES = (25, 50, 75, 90)
"""Quantiles that are shown, of 100."""


class Of(str, Enum):
    """What is profiled."""

    heads = "heads"
    neurons = "neurons"


def profile(
    config: EngineConfig,
    out: Annotated[Path, typer.Option(help="File to write.")],
    of: Annotated[Of, typer.Option(help="For --kv-layout duo, or --skipper cats.")] = Of.heads,
    tokens: Annotated[
        int | None,
        typer.Option(min=8, max=4096, help="Random ones that are repeated (128); or of the text (1024)."),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Text for neurons; a Python module if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Of random tokens.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the heads that look far back, or how far the gates of MLPs open."""
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out={out}: there is no folder {out.parent}")
    if of is Of.heads and text is not None:
        raise ConfigError("--text is for neurons: heads are profiled with random tokens; leave it out")
    words = _read(text) if of is Of.neurons else ""
    with start(config, quiet) as llm:
        if of is Of.heads:
            count, found = _heads(llm, tokens or 128, random.Random(seed), out)
        else:
            count, found = _neurons(llm, tokens or 1024, words, out)
    if as_json:
        write_json({"file": str(out), "tokens": count, "scores" if of is Of.heads else "quantiles": found})
        return
    if of is Of.heads:
        names, use = [f"head {g}" for g in range(max(map(len, found)))], f"--kv-layout duo:profile={out}"
    else:
        names, use = [f"{share} % below" for share in SHARES], f"--skipper cats:profile={out}"
        found = [[layer[share] for share in SHARES] for layer in found]
    rows = [[str(i), *(f"{value:.3f}" for value in layer)] for i, layer in enumerate(found)]
    write_table(["layer", *names], [row + [""] * (len(names) + 1 - len(row)) for row in rows], numbers=names)
    note(f"written to {out}: use it with {use}", quiet)


def _heads(llm: LLM, tokens: int, draw: random.Random, out: Path) -> tuple[int, list[list[float]]]:
    """Tokens of a period, and scores per layer and head."""
    from headrace.kv.heads import Probe, write_profile

    engine = llm.engine
    period = min(tokens, engine.context // PERIODS)
    probe = Probe(engine.architecture, period)
    _run(llm, draw.choices(range(engine.architecture.vocab), k=period) * PERIODS, probe)
    write_profile(out, engine.architecture, probe.scores)
    return period, probe.scores


def _neurons(llm: LLM, tokens: int, words: str, out: Path) -> tuple[int, list[list[float]]]:
    """Tokens that were run, and quantiles per layer."""
    from headrace.forward.neurons import watch, write_profile
    from headrace.kv.heads import Probe

    engine = llm.engine
    ids = llm.tokenizer.encode(words[: 32 * tokens], parse_special=False)[: min(tokens, engine.context)]
    if len(ids) < 8:
        raise ConfigError(f"the text has only {len(ids)} tokens: give a longer one with --text")
    found = watch(engine.decoder)
    _run(llm, ids, Probe(engine.architecture, len(ids) // 2))
    write_profile(out, engine.architecture, found)
    return len(ids), found


def _run(llm: LLM, ids: list[int], probe: Any) -> None:
    import torch

    from headrace.forward.batch import one_text

    with torch.inference_mode():
        llm.engine.decoder.forward(one_text(torch.tensor(ids, device=llm.engine.device)), probe)


def _read(text: Path | None) -> str:
    """The text to profile neurons on: without any, a module that the models in the box were trained on."""
    path = Path(argparse.__file__) if text is None else text
    try:
        if path.stat().st_size > MAX_TEXT:
            raise ConfigError(f"--text={path} has more than {MAX_TEXT} bytes: give a shorter one")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text={path} cannot be read: {error}") from None
