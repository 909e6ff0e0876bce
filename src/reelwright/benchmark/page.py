"""What one evaluation on moving shapes leaves beside the run: a page, and the sheet of its worst videos."""

from __future__ import annotations

from pathlib import Path

from reelwright.benchmark.rows import tabulate
from reelwright.benchmark.runner import Benchmark
from reelwright.report.shapes_page import write_shapes_page
from reelwright.run import RunDirectory
from reelwright.video.sheet import grid_sheet

PAGE, WORST_SHEET = "shapes.html", "shapes-worst.png"
FRAME_HEIGHT = 64


def write_benchmark_page(run: RunDirectory, benchmark: Benchmark, conditions: str) -> Path:
    """Write the page into the run's folder: the table, what was taken for what, the worst videos. Returns its path."""
    sheet = run.path / WORST_SHEET
    if benchmark.worst:
        grid_sheet(
            [one.rendered for one in benchmark.worst],
            [one.video for one in benchmark.worst],
            [one.label for one in benchmark.worst],
            sheet,
            frame_height=FRAME_HEIGHT,
            names=("asked", "made"),
        )
    else:
        sheet.unlink(missing_ok=True)
    return write_shapes_page(
        run.path / PAGE,
        run.path.resolve().name,
        benchmark.track,
        conditions,
        tabulate(benchmark.rows),
        benchmark.confusions,
        sheet.read_bytes() if benchmark.worst else None,
        len(benchmark.worst),
    )
