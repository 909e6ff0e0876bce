"""Plots as SVG text whose lines and letters take the colour of the page around them (`currentColor`)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from reelwright.run import is_number

# Stands for the page's text colour inside matplotlib, which knows no `currentColor`.
INK = "#0b0c0d"
BLUE, ORANGE, GREEN, FAINT = "#4c8dff", "#f28b30", "#2fae74", "#8a93a3"
WIDTH = 10.0  # inches: letters come out as large as the page's own
LOG_SCALE_RATIO = 8  # losses that span more than this are drawn on a logarithmic axis
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay text: they take the page's font and can be found and copied
    "svg.hashsalt": "reelwright",  # the same plot gives the same bytes
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def loss_curve(
    train: Sequence[tuple[float, float]],
    held_out: Sequence[tuple[float, float, float, float]] = (),
    learning_rate: Sequence[tuple[float, float]] = (),
) -> str:
    """SVG of the training loss (step, loss), raw and smoothed; the held-out loss (step, loss, low, high) with its
    interval; below them the learning rate (step, rate). Points that are not finite are left out."""
    train, learning_rate = _finite(train), _finite(learning_rate)
    held_out = [point for point in held_out if all(is_number(value) for value in point[:2])]
    if not train and not held_out:
        raise ValueError("there is no finite loss to draw: give at least one (step, loss)")
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, 5.2 if learning_rate else 4.2), layout="constrained")
        if learning_rate:
            axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
            below.plot(*zip(*learning_rate, strict=True), color=FAINT, linewidth=1.4)
            below.set_ylabel("learning rate")
            below.set_ylim(bottom=0)
            below.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        else:
            axes = below = figure.subplots()
        if train:
            steps, losses = zip(*train, strict=True)
            axes.plot(steps, losses, color=BLUE, alpha=0.28, linewidth=0.9)
            axes.plot(steps, _smooth(losses), color=BLUE, label="training (smoothed)")
        if held_out:
            _band(axes, held_out)
        low, high = _extremes([loss for _, loss in train] + [point[1] for point in held_out])
        if low > 0 and high / low > LOG_SCALE_RATIO:
            _log_axis(axes)
        axes.set_ylabel("loss")
        axes.legend(loc="upper right")
        below.set_xlabel("step")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure)


def held_out_by_time(by_step: Mapping[int, Sequence[float]], times: Sequence[float] | None = None) -> str:
    """SVG of the held-out loss over diffusion time (0 data, 1 noise), one line an evaluated step, newest strongest.

    `times` are the times of the values; without them the values are those of equal parts of [0, 1].
    """
    if not by_step:
        raise ValueError("there is no held-out loss to draw: give at least one step")
    steps = _spread(sorted(by_step), 6)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        axes = figure.subplots()
        shown: list[float] = []
        for rank, step in enumerate(steps):
            values = by_step[step]
            at = times if times is not None else [(index + 0.5) / len(values) for index in range(len(values))]
            points = _finite(list(zip(at, values, strict=True)))
            if not points:
                continue
            age = (len(steps) - 1 - rank) / max(1, len(steps) - 1)
            colour = BLUE if rank == len(steps) - 1 else FAINT
            axes.plot(
                *zip(*points, strict=True), color=colour, alpha=1 - 0.7 * age, marker="o", ms=3.5, label=f"step {step}"
            )
            shown += [value for _, value in points]
        low, high = _extremes(shown)
        if low > 0 and high / low > LOG_SCALE_RATIO:
            _log_axis(axes)
        axes.set_xlim(0, 1)
        axes.set_xlabel("diffusion time t (0 data, 1 noise)")
        axes.set_ylabel("held-out loss")
        if shown:
            axes.legend(loc="best", ncols=2)
        return _svg(figure)


def score_bars(rows: Sequence[Mapping[str, Any]]) -> str:
    """SVG of scores with their intervals, one panel a metric, one bar a row.

    A row is {"row": who, "metric": by what, "value": v, "low": l, "high": h}; low and high may be missing.
    """
    drawn = [row for row in rows if is_number(row.get("value"))]
    if not drawn:
        raise ValueError("there is no score to draw: give at least one row with a finite value")
    metrics = list(dict.fromkeys(str(row.get("metric")) for row in drawn))
    groups = [[row for row in drawn if str(row.get("metric")) == metric] for metric in metrics]
    with matplotlib.rc_context({**_STYLE, "axes.grid.axis": "x"}):
        height = sum(0.34 * len(group) + 0.8 for group in groups)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[len(group) + 1 for group in groups])
        for axes, metric, group in zip(panels[:, 0], metrics, groups, strict=True):
            _score_panel(axes, metric, group)
        return _svg(figure)


def _score_panel(axes: Axes, metric: str, group: Sequence[Mapping[str, Any]]) -> None:
    values = [float(row["value"]) for row in group]
    lows = [float(row["low"]) if is_number(row.get("low")) else value for row, value in zip(group, values, strict=True)]
    highs = [
        float(row["high"]) if is_number(row.get("high")) else value for row, value in zip(group, values, strict=True)
    ]
    places = range(len(group))
    axes.barh(places, values, height=0.62, color=BLUE, alpha=0.85)
    reach = [
        [max(0.0, value - low) for value, low in zip(values, lows, strict=True)],
        [max(0.0, high - value) for value, high in zip(values, highs, strict=True)],
    ]
    axes.errorbar(values, places, xerr=reach, fmt="none", ecolor=INK, elinewidth=1.1, capsize=3)
    span = max(*highs, 0.0) - min(*lows, 0.0) or 1.0
    for place, value, high in zip(places, values, highs, strict=True):
        axes.annotate(f"{value:.3g}", (max(value, high, 0.0) + 0.012 * span, place), va="center", fontsize=9)
    axes.set_yticks(places, [_plain(str(row.get("row"))) for row in group])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_title(_plain(metric), loc="left", fontsize=10.5)


def _band(axes: Axes, held_out: Sequence[tuple[float, float, float, float]]) -> None:
    steps = [point[0] for point in held_out]
    axes.plot(steps, [point[1] for point in held_out], color=ORANGE, marker="o", markersize=4, label="held-out")
    bounded = [point for point in held_out if all(is_number(value) for value in point)]
    if bounded:
        at, _, low, high = zip(*bounded, strict=True)
        axes.fill_between(at, low, high, color=ORANGE, alpha=0.2, linewidth=0, label="held-out, 95 % interval")


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean of the neighbours on both sides, a thirtieth of the curve in all: unlike a running mean it never lags."""
    reach = len(values) // 60
    windows = (values[max(0, index - reach) : index + reach + 1] for index in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _log_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _spread(items: list[int], count: int) -> list[int]:
    """At most `count` items, evenly picked, first and last among them."""
    if len(items) <= count:
        return items
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def _extremes(values: Sequence[float]) -> tuple[float, float]:
    return (min(values), max(values)) if values else (0.0, 0.0)


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [point for point in points if all(is_number(value) for value in point)]


def _plain(text: str) -> str:
    """Text without matplotlib's $formula$ and without what XML forbids."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text).replace("$", r"\$")
    return shown if len(shown) <= 60 else shown[:59] + "…"


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue().replace(INK, "currentColor")
