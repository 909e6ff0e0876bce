"""The moving-shapes benchmark of a run on one page: every row, what was taken for what, and the worst videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from reelwright.report.confusion import confusion_matrix
from reelwright.report.page import Page

Table = tuple[Sequence[str], Sequence[Sequence[object]]]  # headers, rows
Confusions = Mapping[str, Mapping[tuple[str, str | None], int]]  # by factor: (stated, read) -> how often


def write_shapes_page(
    path: Path,
    name: str,
    track: str,
    conditions: str,
    table: Table,
    confusions: Mapping[str, Confusions],
    worst: bytes | None,
    num_worst: int,
) -> Path:
    """Write the page. `conditions` is the sentence that says how it was measured; `confusions` are by group of splits;
    `worst` is a PNG of `num_worst` videos, None where none is wrong. Returns the path."""
    page = Page(f"Moving shapes: {name}", f"Track {track}. The videos are read by a frozen checker without a network.")
    page.text(f"How: {conditions}.")
    page.section("Scores", "Shares of all prompts of a row; what could not be read counts as wrong.")
    page.table(*table)
    for group, by_factor in confusions.items():
        page.section(
            f"Stated and read: {group.replace('_', ' ')}",
            "A row is a stated word, a column what was read of the model's videos; on the diagonal it is right.",
        )
        for factor, counts in by_factor.items():
            page.image(confusion_matrix(factor, counts), factor)
    if worst is not None:
        page.section(
            f"The worst {num_worst}",
            "Most stated factors wrong first: what the renderer makes of the prompt, and the model below it.",
        )
        page.image(worst)
    page.write(path)
    return path
