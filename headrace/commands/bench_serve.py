"""`headrace bench serve`: load on a server, ours or any that speaks OpenAI's API, and what its clients see."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.commands.flags import AsJson, Quiet
from headrace.commands.output import need_matplotlib, note, write_json, write_table
from headrace.config import EngineConfig
from headrace.errors import ConfigError
from headrace.meter import ProgressBar

if TYPE_CHECKING:
    from headrace.server.load import Seen

COLUMNS = ("", "p50", "p95", "p99", "max")


def load(
    config: EngineConfig,
    url: Annotated[
        str | None,
        typer.Option(help="A running server, such as http://127.0.0.1:8000. Default: one of ours."),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many.")] = 64,
    clients: Annotated[
        int, typer.Option(min=1, max=4096, help="At once; each asks again when it has its answer.")
    ] = 16,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Requests per second that arrive by chance, instead of --clients."),
    ] = None,
    burstiness: Annotated[
        float, typer.Option(min=0.01, max=100, help="With --rate: 1 is Poisson; below, bursts (Gamma).")
    ] = 1.0,
    words: Annotated[str, typer.Option(help="Words of a prompt, fewest-most.")] = "30-200",
    shared_words: Annotated[int, typer.Option(min=0, help="Of these, the same in front of all prompts.")] = 0,
    vocab: Annotated[
        int | None,
        typer.Option(min=1, help="Prompts of random token ids below this, instead of words: exact lengths."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="To generate, per request.")] = 64,
    ttft: Annotated[float, typer.Option(help="Objective: seconds to the first token.")] = 2.0,
    itl: Annotated[float, typer.Option(help="Objective: seconds between tokens, on average.")] = 0.2,
    api_key: Annotated[str, typer.Option(help="That the server wants.")] = "",
    seed: Annotated[int, typer.Option(help="Of prompts and arrivals.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="PNG file: latencies of every request over time.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Load on a server: requests/s, first tokens, gaps between tokens, goodput."""
    from headrace.server.load import Shape, make, run, summarise

    if plot is not None:
        _check_plot(plot)
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", words)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 0 < low <= high:
        raise ConfigError(f"--words={words!r} is not a range such as 30-200")
    asks = make(Shape(requests, (low, high), shared_words, max_tokens, rate, burstiness, vocab), seed)
    with _server(config, url, quiet) as where, ProgressBar(requests, "requests") as bar:
        seen = asyncio.run(
            run(
                where,
                asks,
                clients=None if rate else clients,
                key=api_key,
                timeout=3600,
                done=bar.advance,
            )
        )
    row = summarise(seen, ttft_s=ttft, itl_s=itl)
    if plot is not None:
        _plot(seen, row, plot)
    if as_json:
        write_json(row)
    else:
        _show(row, ttft, itl)


@contextlib.contextmanager
def _server(config: EngineConfig, url: str | None, quiet: bool) -> Iterator[str]:
    """The server to ask: the one at `url`, or one of ours for as long as it takes."""
    if url is not None:
        yield url.rstrip("/").removesuffix("/v1")
        return
    from headrace.server.run import Options, in_background

    with in_background(config, Options(port=0), lambda line: note(line, quiet)) as found:
        yield found


def _show(row: dict[str, Any], ttft: float, itl: float) -> None:
    def cells(name: str, label: str) -> list[str]:
        values = [row.get(f"{name}_{column}_s") for column in COLUMNS[1:]]
        return [label, *("-" if value is None else f"{value * 1000:.1f}" for value in values)]

    rows = [
        cells("ttft", "first token ms"),
        cells("itl", "between tokens ms"),
        cells("request", "whole request ms"),
    ]
    write_table(COLUMNS, rows, numbers=COLUMNS[1:])
    goodput = row.get("goodput_per_s", 0.0)
    note(
        f"{row['requests']} requests, {row['failed']} failed, {row['seconds']:.1f} s: {row['requests_per_s']:.2f} "
        f"requests/s, {row['output_tok_s']:.1f} tokens/s out, {row['prompt_tok_s']:.0f} in; goodput {goodput:.2f}/s "
        f"(first token within {ttft:g} s, {itl:g} s between tokens)"
    )


def _check_plot(path: Path) -> None:
    """Before a run, not after it. Raises ConfigError."""
    need_matplotlib()
    if not path.parent.is_dir():
        raise ConfigError(f"--plot={path}: there is no folder {path.parent}")


def _plot(seen: list[Seen], row: dict[str, Any], path: Path) -> None:
    """Over the time of the run: requests under way, first tokens, gaps between tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    under_way, first, gaps = figure.subplots(3, sharex=True, height_ratios=(1, 2, 2))
    good = [one for one in seen if not one.error and one.pieces]
    changes = sorted([(one.sent, 1) for one in seen] + [(one.ended, -1) for one in seen])
    levels = itertools.accumulate(change for _, change in changes)
    under_way.step([at for at, _ in changes], list(levels), where="post", color="C7")
    under_way.set(ylabel="under way", ylim=(0, None))
    first.plot([one.sent for one in good], [one.ttft for one in good], "o", markersize=3, label="a request")
    pieces = [(at, gap) for one in good for at, gap in one.timed_gaps]
    gaps.plot(
        [at for at, _ in pieces], [gap for _, gap in pieces], "o", markersize=2, alpha=0.4, label="a token"
    )
    for panel, name, what in ((first, "ttft", "first token after, s"), (gaps, "itl", "between tokens, s")):
        panel.axhline(row[f"objective_{name}_s"], color="C3", linestyle="--", label="objective")
        for share, style in (("p50", "-"), ("p99", ":")):
            if f"{name}_{share}_s" in row:
                panel.axhline(row[f"{name}_{share}_s"], color="C1", linestyle=style, label=share)
        panel.set(ylabel=what, ylim=(0, 1.2 * panel.get_ylim()[1]))  # the legend lies above everything
        panel.legend(loc="upper right", ncols=4, fontsize="small")
    gaps.set_xlabel("seconds since the start")
    figure.suptitle(
        f"{row['requests']} requests, {row['failed']} failed: {row['requests_per_s']:.2f} requests/s, "
        f"{row['output_tok_s']:.1f} tokens/s out, goodput {row.get('goodput_per_s', 0.0):.2f}/s"
    )
    figure.savefig(path, format="png", dpi=120)
