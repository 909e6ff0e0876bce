"""The curves of several runs on one plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reelwright.report.plots import _STYLE, BLUE, FAINT, GREEN, LOG_SCALE_RATIO, ORANGE, WIDTH, _log_axis, _plain, _svg

COLOURS = (BLUE, ORANGE, GREEN, "#c2559d", "#8a63d2", "#b8a13a", "#3fb5c4", FAINT)
DASHES = ("-", "--", ":", "-.")  # once the colours are used up

Curve = Sequence[tuple[float, float]]


def arm_curves(arms: Mapping[str, Sequence[Curve]], ylabel: str = "held-out loss") -> str:
    """SVG of the (step, loss) curves of each arm's runs, one colour an arm; points that are not finite are left out.

    Arms whose curves are all but the same would hide one another: later ones are drawn thinner, on top.
    """
    drawn = {name: [kept for run in runs if (kept := _finite(run))] for name, runs in arms.items()}
    drawn = {name: runs for name, runs in drawn.items() if runs}
    if not drawn:
        raise ValueError("there is no finite loss to draw: give at least one (step, loss)")
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, 4.4 + 0.22 * max(0, len(drawn) - 4)), layout="constrained")
        axes = figure.subplots()
        values = []
        for number, (name, runs) in enumerate(drawn.items()):
            colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
            width = 3.2 - 2.2 * number / max(1, len(drawn) - 1)
            for index, run in enumerate(runs):
                steps, losses = zip(*run, strict=True)
                values += losses
                axes.plot(
                    steps, losses, dash, color=colour, linewidth=width, marker="o", markersize=2.5 + width / 2,
                    alpha=0.85, label=_plain(name) if index == 0 else None,
                )  # fmt: skip
        if min(values) > 0 and max(values) / min(values) > LOG_SCALE_RATIO:
            _log_axis(axes)
        axes.set_ylabel(ylabel)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper left", ncols=1 if len(drawn) > 4 else 2)
        return _svg(figure)


def _finite(curve: Curve) -> list[tuple[float, float]]:
    return [(step, loss) for step, loss in curve if loss is not None and math.isfinite(step) and math.isfinite(loss)]
