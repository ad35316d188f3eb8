"""The picture of a comparison: what each stack gains and what it costs, and which stacks no other one beats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from headrace.commands.comparison import LOWER_IS_BETTER, MIB, Contender, Measured
from headrace.commands.output import need_matplotlib
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")


class Point(NamedTuple):
    """A stack in one panel."""

    label: str
    x: float
    y: float


def check(path: Path) -> None:
    """Before a run, not after it. Raises ConfigError."""
    need_matplotlib()
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"--plot={path}: the name must end in {' or '.join(FORMATS)}")


def front(points: Sequence[Point], *, more_x: bool, more_y: bool) -> list[Point]:
    """The points that no other one beats: as good in both, better in one. By x."""

    def better(a: Point, b: Point) -> bool:
        x, y = (a.x - b.x) * (1 if more_x else -1), (a.y - b.y) * (1 if more_y else -1)
        return x >= 0 and y >= 0 and (x > 0 or y > 0)

    return sorted((p for p in points if not any(better(q, p) for q in points)), key=lambda p: p.x)


def draw(measured: Measured, path: Path) -> None:
    """Two panels: speed, and memory, each against the first score; against each other where there is none."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ran = [contender for contender in measured.contenders if contender.turns]
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    axes = figure.subplots(1, 2)
    batches = measured.batches
    memory = {c.label: (c.fact("peak_rss_bytes") or 0) / MIB for c in ran}
    if measured.metrics:
        task, metric = measured.metrics[0]
        more = metric not in LOWER_IS_BETTER
        quality = {c.label: s["value"] for c in ran if (s := c.score(task, metric)) is not None}
        name = f"{task}, {metric} ({'more' if more else 'less'} is better)"
        _panel(
            axes[0],
            _speeds(ran, batches[0]),
            quality,
            (f"decode tok/s, batch {batches[0]}", name),
            True,
            more,
        )
        _panel(axes[1], memory, quality, ("peak memory, MiB", name), False, more)
    else:
        for panel, batch in zip(axes, (batches[0], batches[-1]), strict=True):
            names = (f"decode tok/s, batch {batch}", "peak memory, MiB (less is better)")
            _panel(panel, _speeds(ran, batch), memory, names, True, False)
    figure.suptitle("Stacks compared; the line joins those that no other beats")
    with rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(path, dpi=130)


def _speeds(ran: Sequence[Contender], batch: int) -> dict[str, float]:
    return {c.label: s.median for c in ran if (s := c.spread("decode_tok_s", batch)) is not None}


def _panel(
    axes: Axes,
    xs: dict[str, float],
    ys: dict[str, float],
    names: tuple[str, str],
    more_x: bool,
    more_y: bool,
) -> None:
    points = [Point(label, xs[label], ys[label]) for label in xs if label in ys]
    best = front(points, more_x=more_x, more_y=more_y)
    axes.plot([p.x for p in best], [p.y for p in best], "-", color="C2", linewidth=1.5, zorder=1)
    for i, point in enumerate(points):
        color = "C2" if point in best else "0.55"
        axes.plot(point.x, point.y, "o", color=color, markersize=8, zorder=2)
        axes.annotate(
            point.label,
            (point.x, point.y),
            textcoords="offset points",
            xytext=(8, 7 if i % 2 == 0 else -14),
            fontsize="small",
            color="black" if point in best else "0.35",
        )
    axes.set(xlabel=names[0] + (" (more is better)" if more_x else " (less is better)"), ylabel=names[1])
    axes.margins(x=0.25, y=0.2)
    if not more_y:
        axes.invert_yaxis()  # better is up
    if not more_x:
        axes.invert_xaxis()  # and to the right
    axes.grid(alpha=0.3)
