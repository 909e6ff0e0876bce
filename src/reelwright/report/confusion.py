"""What was taken for what, as a matrix of counts."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from reelwright.report.plots import _STYLE, BLUE, INK, ORANGE, WIDTH, _plain, _svg

CELL = 0.42  # inches
MARGIN_ABOVE, MARGIN_LEFT = 1.05, 1.6  # for the words of the columns and rows
NOT_READ = "not read"


def confusion_matrix(factor: str, counts: Mapping[tuple[str, str | None], int]) -> str:
    """SVG of how often each stated word was read as which: (stated, read) -> count; read is None where nothing was.

    A cell is the darker, the larger its share of its row; right ones are blue, wrong ones orange. ValueError for no
    counts at all.
    """
    if not counts:
        raise ValueError(f"{factor}: there are no counts to draw")
    stated = list(dict.fromkeys(word for word, _ in counts))
    others = dict.fromkeys(read for _, read in counts if read is not None and read not in stated)  # never asked for
    columns: list[str | None] = [*stated, *others]
    if any(read is None for _, read in counts):
        columns.append(None)
    totals = {word: sum(k for (asked, _), k in counts.items() if asked == word) for word in stated}
    height = MARGIN_ABOVE + CELL * len(stated)
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(WIDTH, height))
        width = CELL * len(columns)
        axes = figure.add_axes((MARGIN_LEFT / WIDTH, 0.02, width / WIDTH, CELL * len(stated) / height))
        for y, word in enumerate(stated):
            for x, read in enumerate(columns):
                if count := counts.get((word, read), 0):
                    shade = to_rgba(BLUE if read == word else ORANGE, 0.15 + 0.75 * count / totals[word])
                    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=shade, linewidth=0))
                    axes.text(x, y, str(count), ha="center", va="center", fontsize=8.5, color=INK)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(stated) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), [_plain(read or NOT_READ) for read in columns], rotation=45, ha="left")
        axes.set_yticks(range(len(stated)), [_plain(word) for word in stated])
        axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0, labelsize=9)
        return _svg(figure)
