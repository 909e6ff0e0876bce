"""The moving-shapes benchmark: what a model's videos show, beside every control row."""

from reelwright.benchmark.page import write_benchmark_page
from reelwright.benchmark.rows import HEADERS, Row, ScoreRow, tabulate, with_interval
from reelwright.benchmark.runner import (
    Benchmark,
    Shown,
    checker_of,
    is_shapes_collection,
    read_collection,
    run_benchmark,
    through_codec,
)

__all__ = [
    "HEADERS",
    "Benchmark",
    "Row",
    "ScoreRow",
    "Shown",
    "checker_of",
    "is_shapes_collection",
    "read_collection",
    "run_benchmark",
    "tabulate",
    "through_codec",
    "with_interval",
    "write_benchmark_page",
]
