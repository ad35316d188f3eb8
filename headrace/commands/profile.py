"""`headrace profile`: which heads look far back, how far the gates of MLPs open, codebooks of keys and values.

For `--kv-layout duo` and `razor`, for `--skipper cats`, and for `--kv-codec kvquant`.
"""

from __future__ import annotations

import argparse
import random
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace import artefact
from headrace.commands.flags import AsJson, Quiet
from headrace.commands.output import note, write_json, write_table
from headrace.commands.start import start
from headrace.config import EngineConfig
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.llm import LLM

PERIODS = 3
TEXTS = 8
"""That codebooks are learnt from."""
SHARES = (25, 50, 75, 90)
"""Quantiles that are shown, of 100."""
MAX_TEXT = 64 << 20


class Of(str, Enum):
    """What is found out."""

    heads = "heads"
    neurons = "neurons"
    codes = "codes"


def profile(
    config: EngineConfig,
    out: Annotated[Path, typer.Option(help="File to write.")],
    of: Annotated[
        Of,
        typer.Option(
            help="Heads that look far back, gates that hardly open, or codebooks of keys and values."
        ),
    ] = Of.heads,
    tokens: Annotated[
        int,
        typer.Option(
            min=8, max=4096, help="Heads: random tokens that are repeated. Others: of each of 8 texts."
        ),
    ] = 128,
    text: Annotated[
        Path | None,
        typer.Option(help="For neurons and codes. Default: a Python module; what the model itself writes."),
    ] = None,
    rare: Annotated[
        float,
        typer.Option(min=0, max=0.1, help="Codes: share of a channel's keys beyond each end of its range."),
    ] = 0.001,
    seed: Annotated[int, typer.Option(help="Of the tokens.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the heads that look far back, how far the gates of MLPs open, or codebooks of keys and values."""
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out={out}: there is no folder {out.parent}")
    if of is Of.heads and text is not None:
        raise ConfigError(
            "--text is for --of codes and neurons: heads are found from random tokens; leave it out"
        )
    with start(config, quiet) as llm:
        if of is Of.heads:
            _heads(llm, out, tokens, seed, as_json, quiet)
        elif of is Of.neurons:
            texts = _texts(llm, Path(argparse.__file__) if text is None else text, tokens, seed)
            _neurons(llm, out, [token for ids in texts for token in ids], as_json, quiet)
        else:
            _codes(llm, out, _texts(llm, text, tokens, seed), rare, as_json, quiet)


def _heads(llm: LLM, out: Path, tokens: int, seed: int, as_json: bool, quiet: bool) -> None:
    import torch

    from headrace.forward.batch import one_text
    from headrace.kv.heads import Probe, write_profile

    engine = llm.engine
    period = min(tokens, engine.context // PERIODS)
    draw = random.Random(seed)
    ids = draw.choices(range(engine.architecture.vocab), k=period) * PERIODS
    probe = Probe(engine.architecture, period)
    with torch.inference_mode():
        engine.decoder.forward(one_text(torch.tensor(ids, device=engine.device)), probe)
    write_profile(out, engine.architecture, probe.scores, probe.spread())
    if as_json:
        write_json({"file": str(out), "tokens": period, "scores": probe.scores, "spread": probe.spread()})
        return
    rows = [[str(i), *(f"{score:.3f}" for score in layer)] for i, layer in enumerate(probe.scores)]
    heads = [f"head {g}" for g in range(max(map(len, probe.scores)))]
    write_table(["layer", *heads], [row + [""] * (len(heads) + 1 - len(row)) for row in rows], numbers=heads)
    note(f"written to {out}: use it with --kv-layout duo:profile={out}", quiet)


def _neurons(llm: LLM, out: Path, ids: list[int], as_json: bool, quiet: bool) -> None:
    import torch

    from headrace.forward.batch import one_text
    from headrace.forward.neurons import watch, write_profile
    from headrace.kv.heads import Probe

    engine, ids = llm.engine, ids[: llm.engine.context]
    if len(ids) < 8:
        raise ConfigError(f"the text has only {len(ids)} tokens: give a longer one with --text")
    found = watch(engine.decoder)
    with torch.inference_mode():
        text = one_text(torch.tensor(ids, device=engine.device))
        engine.decoder.forward(text, Probe(engine.architecture, len(ids) // 2))
    write_profile(out, engine.architecture, found)
    if as_json:
        write_json({"file": str(out), "tokens": len(ids), "quantiles": found})
        return
    names = [f"{share} % below" for share in SHARES]
    rows = [[str(i), *(f"{layer[share]:.3f}" for share in SHARES)] for i, layer in enumerate(found)]
    write_table(["layer", *names], rows, numbers=names)
    note(f"written to {out}: use it with --skipper cats:profile={out}", quiet)


def _codes(llm: LLM, out: Path, texts: list[list[int]], rare: float, as_json: bool, quiet: bool) -> None:
    import torch

    from headrace.forward.batch import one_text
    from headrace.kv import codebooks
    from headrace.kv.unrotated import rotaries

    engine = llm.engine
    turns = rotaries(engine.architecture, engine.device, engine.decoder.dtype)
    samples = codebooks.Samples(engine.architecture, turns)
    with torch.inference_mode():
        for ids in texts:
            engine.decoder.forward(one_text(torch.tensor(ids, device=engine.device)), samples)
    books = codebooks.learn(engine.architecture.family, samples, rare)
    artefact.write(out, books)
    size = sum(map(len, texts))
    if as_json:
        write_json({"file": str(out), "tokens": size, "layers": len(books.layers), "weights": "uniform"})
        return
    note(
        f"learnt from {size} tokens, all weighing the same: use it with --kv-codec kvquant:codebooks={out}",
        quiet,
    )


def _texts(llm: LLM, path: Path | None, tokens: int, seed: int) -> list[list[int]]:
    """Of so many tokens each: cut from a file, or written by the model at temperature 1."""
    from headrace.params import SamplingParams

    length = min(tokens, llm.engine.context - 1)
    if path is None:
        first = llm.tokenizer.bos if llm.tokenizer.bos is not None else random.Random(seed).randrange(256)
        params = SamplingParams(temperature=1, n=TEXTS, max_tokens=length - 1, seed=seed, ignore_eos=True)
        [output] = llm.generate([[first]], params, progress=False)
        return [[first, *sample.token_ids] for sample in output.samples]
    try:
        if path.stat().st_size > MAX_TEXT:
            raise ConfigError(f"--text={path} is larger than {MAX_TEXT} bytes: give a part of it")
        ids = llm.tokenizer.encode(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text={path} cannot be read as UTF-8 text: {error}") from None
    texts = [ids[at : at + length] for at in range(0, min(len(ids), TEXTS * length), length)]
    if not texts:
        raise ConfigError(f"--text={path} is empty: give some text")
    return texts
