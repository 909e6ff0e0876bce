"""The lines of the benchmark's table: who made the videos of which split, and what the checker read of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reelwright.metrics.statistics import wilson_interval
from reelwright.shapes.scores import Count, Scores

ScoreRow = dict[str, Any]  # {"row", "split", "metric", "value", "low", "high", "n"}

HEADLINE_FACTORS = ("shape", "colour", "motion")
HEADERS = ["row", "split", "joint accuracy", *HEADLINE_FACTORS, "still apart", "abstained", "n"]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    split: str
    scores: Scores

    def figures(self) -> list[ScoreRow]:
        """The figures as score rows, shares with their Wilson interval."""
        s = self.scores
        shares = {
            "joint accuracy": s.joint,
            "still joint accuracy": s.still,
            "abstained": s.abstained,
            "valid": s.valid,
        }
        shares |= {f"{name} accuracy": count for name, count in s.factors.items()}
        if s.complete is not None and s.swapped is not None:
            shares["everything there, on whichever object"] = s.complete
            shares["everything there, on the wrong object"] = s.swapped
            shares["bound right where everything is there"] = Count(s.joint.k, s.complete.k)
        rows = [self._share(metric, count) for metric, count in shares.items() if count.n]
        plain = {
            "binding deficit": s.binding_deficit,
            "direction error (degrees)": s.direction_error_degrees,
            "path residual (pixels)": s.path_residual_pixels,
            **{f"diversity of {name}": value for name, value in s.diversity.items()},
        }
        return rows + [self._row(metric, value, n=s.joint.n) for metric, value in plain.items() if value is not None]

    def cells(self, factors: Sequence[str] = HEADLINE_FACTORS, with_binding: bool = False) -> list[str]:
        """The row as the printed table shows it."""
        s = self.scores
        return [
            self.name,
            self.split,
            with_interval(s.joint),
            *(f"{s.factors[name].share:.1%}" if name in s.factors else "-" for name in factors),
            *([_of(s.swapped), _of(s.complete and Count(s.joint.k, s.complete.k))] if with_binding else []),
            f"{s.still.share:.0%} of {s.still.n}" if s.still.n else "-",
            f"{s.abstained.share:.1%}",
            str(s.joint.n),
        ]

    def _share(self, metric: str, count: Count) -> ScoreRow:
        low, high = wilson_interval(count.k, count.n)
        return self._row(metric, count.share, low, high, count.n)

    def _row(
        self, metric: str, value: float, low: float | None = None, high: float | None = None, n: int = 0
    ) -> ScoreRow:
        return {
            "row": self.name, "split": self.split, "metric": metric, "value": value, "low": low, "high": high, "n": n
        }  # fmt: skip


def tabulate(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of the printed table: HEADERS, with the factors and the binding that only some tracks have."""
    stated = {name: None for row in rows for name in row.scores.factors}
    factors = [*HEADLINE_FACTORS, *(name for name in stated if name not in HEADLINE_FACTORS)]
    with_binding = any(row.scores.complete is not None for row in rows)
    binding = ["swapped", "bound right"] if with_binding else []
    headers = [*HEADERS[:3], *factors, *binding, *HEADERS[3 + len(HEADLINE_FACTORS) :]]
    return headers, [row.cells(factors, with_binding) for row in rows]


def with_interval(count: Count) -> str:
    if not count.n:
        return "-"
    low, high = wilson_interval(count.k, count.n)
    return f"{count.share:.1%} [{low:.1%}, {high:.1%}]"


def _of(count: Count | None) -> str:
    return f"{count.share:.1%}" if count is not None and count.n else "-"
