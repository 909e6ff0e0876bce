"""A run as the page shows it: where it is, its loss curve, samples and scores, the end of its log.

Only the run directory is read, so that a run started from the command line is shown just the same.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reelwright.report.plots import loss_curve
from reelwright.report.scores import numbered_conditions
from reelwright.run import RunDirectory, is_number
from reelwright.types import UserError
from reelwright.ui.commands import tail
from reelwright.ui.controls import output_card
from reelwright.ui.desk import Desk
from reelwright.ui.fragments import STATES, escape, notice, progress_bar
from reelwright.ui.records import Job
from reelwright.ui.workspace import Workspace
from reelwright.video.write import FORMATS

MAX_POINTS, MAX_CURVES = 1500, 16
MAX_SAMPLES, LOG_LINES = 8, 14
_SCORE_COLUMNS = ("metric", "row", "split", "value", "low", "high", "n")


class Curves:
    """Loss curves as SVG, drawn anew only when the figures grew. matplotlib's settings are one for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._drawn: dict[Path, tuple[tuple[int, int], str]] = {}

    def draw(self, metrics: Path) -> str:
        """HTML of the curve, with its last step and number of points as data attributes."""
        with self._lock:
            facts = metrics.stat()
            size = (facts.st_size, facts.st_mtime_ns)
            known = self._drawn.get(metrics)
            if known is None or known[0] != size:
                self._drawn.pop(metrics, None)
                while len(self._drawn) >= MAX_CURVES:
                    del self._drawn[next(iter(self._drawn))]
                known = self._drawn[metrics] = (size, _curve(RunDirectory(metrics.parent).read_metrics()))
            return known[1]


def _curve(records: Sequence[Mapping[str, Any]]) -> str:
    train = _thinned([(r["step"], r["loss"]) for r in records if is_number(r.get("step")) and is_number(r.get("loss"))])
    held_out = [
        (r["step"], r["heldout_loss"], _or_nan(r.get("heldout_low")), _or_nan(r.get("heldout_high")))
        for r in records
        if is_number(r.get("step")) and is_number(r.get("heldout_loss"))
    ]
    if not train and not held_out:
        return '<p class="rw-faint">No loss has been logged yet.</p>'
    last = max(point[0] for point in [*train, *held_out])
    svg = loss_curve(train, held_out)
    return (
        f'<div class="rw-curve" data-step="{last}" data-points="{len(train)}">{svg[svg.index("<svg") :]}</div>'
        f'<p class="rw-facts">step {last:,}{f" · loss {train[-1][1]:.4g}" if train else ""}'
        f"{f' · held-out loss {held_out[-1][1]:.4g}' if held_out else ''}</p>"
    )


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS of them, the last always among them."""
    every = math.ceil(len(points) / MAX_POINTS) if points else 1
    return points[::-every][::-1]


def _or_nan(value: Any) -> float:
    return value if is_number(value) else math.nan


def training_job(desk: Desk, run: str) -> Job | None:
    """The newest training job that writes, or wrote, this run."""
    return next((job for job in desk.queue.list() if job.kind == "train" and run in job.outputs), None)


def status(run: str, job: Job | None) -> str:
    """A line on the run, and how far its job is or how it ended."""
    title = f'<p class="rw-title">{escape(run)}</p>'
    if job is None:
        return title + '<p class="rw-faint">Not started from this page; resume goes on where it stopped.</p>'
    parts = [f'<div class="rw-run {job.state}" data-job="{escape(job.id)}">', title]
    parts.append(progress_bar(job) if job.active else f'<p class="rw-facts">training: {STATES[job.state]}</p>')
    if job.error:
        parts.append(notice(job.error, "bad" if job.state == "failed" else ""))
    return "".join([*parts, "</div>"])


def run_file(workspace: Workspace, run: str, *names: str) -> Path | None:
    """A file of a run; None where it is not there (yet) or leads out of the workspace."""
    try:
        return workspace.resolve("/".join([run, *names]), "file", "run")
    except UserError:
        return None


def sample_names(workspace: Workspace, run: str) -> list[str]:
    """The newest sample videos, those of one step in their order."""
    try:
        folder = workspace.resolve(f"{run}/samples", "data", "run")
        names = [path.name for path in folder.iterdir() if path.suffix in FORMATS and not path.name.startswith(".")]
    except (UserError, OSError):
        return []
    steps = sorted({name[: name.rfind("-")] for name in names}, reverse=True)
    newest = [name for step in steps for name in sorted(names) if name[: name.rfind("-")] == step]
    return [workspace.relative(folder / name) for name in newest[:MAX_SAMPLES]]


def samples(desk: Desk, names: Sequence[str]) -> str:
    if not names:
        return ""
    cards = "".join(output_card(desk, name, ()) for name in names)
    return f'<p class="rw-title">Samples, the newest first</p><div class="rw-grid">{cards}</div>'


def scores(path: Path | None) -> str:
    """What `evaluate` measured, every row with those it must be held against."""
    if path is None:
        return ""
    try:
        rows, model = RunDirectory(path.parent).read_scores()
    except UserError as damage:
        return notice(str(damage), "bad")
    if not rows:
        return ""
    numbers, conditions = numbered_conditions(rows)
    heads = "".join(f"<th>{escape(name)}</th>" for name in (*_SCORE_COLUMNS, "how"))
    lines = "".join(
        "<tr>"
        + "".join(f"<td>{_cell(value)}</td>" for value in (*(row.get(k) for k in _SCORE_COLUMNS), number))
        + "</tr>"
        for row, number in zip(rows, numbers, strict=True)
    )
    step = f" after {model['steps_trained']:,} steps" if is_number(model.get("steps_trained")) else ""
    notes = "".join(f'<p class="rw-facts">how {n}: {escape(text)}</p>' for n, text in enumerate(conditions, start=1))
    return (
        f'<p class="rw-title">Scores{step}, 95 % intervals</p><div class="rw-table"><table><tr>{heads}</tr>{lines}'
        f"</table></div>{notes}"
    )


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else escape(value)


def log_end(path: Path | None) -> str:
    if path is None:
        return ""
    lines = tail(path).strip("\n").split("\n")[-LOG_LINES:]
    text = escape("\n".join(lines))
    return f'<details><summary class="rw-facts">Log</summary><pre class="rw-code">{text}</pre></details>'
