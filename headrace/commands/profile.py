"""`headrace profile`: which of a model's heads look far back, for `--kv-layout duo`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer

from headrace.commands.flags import AsJson, Quiet
from headrace.commands.output import note, write_json, write_table
from headrace.commands.start import start
from headrace.config import EngineConfig
from headrace.errors import ConfigError

PERIODS = 3


def profile(
    config: EngineConfig,
    out: Annotated[Path, typer.Option(help="File to write.")],
    tokens: Annotated[int, typer.Option(min=8, max=4096, help="Random tokens that are repeated.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the tokens.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the heads that look far back, from repeated random tokens."""
    import torch

    from headrace.forward.batch import one_text
    from headrace.kv.heads import Probe, write_profile

    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out={out}: there is no folder {out.parent}")
    with start(config, quiet) as llm:
        engine = llm.engine
        period = min(tokens, engine.context // PERIODS)
        draw = random.Random(seed)
        ids = draw.choices(range(engine.architecture.vocab), k=period) * PERIODS
        probe = Probe(engine.architecture, period)
        with torch.inference_mode():
            engine.decoder.forward(one_text(torch.tensor(ids, device=engine.device)), probe)
        write_profile(out, engine.architecture, probe.scores)
    if as_json:
        write_json({"file": str(out), "tokens": period, "scores": probe.scores})
    else:
        rows = [[str(i), *(f"{score:.3f}" for score in layer)] for i, layer in enumerate(probe.scores)]
        heads = [f"head {g}" for g in range(max(map(len, probe.scores)))]
        write_table(
            ["layer", *heads], [row + [""] * (len(heads) + 1 - len(row)) for row in rows], numbers=heads
        )
        note(f"written to {out}: use it with --kv-layout duo:profile={out}", quiet)
