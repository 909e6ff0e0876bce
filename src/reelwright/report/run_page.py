"""A run on one page: is it getting better, what does it make, how was it made. Reads the run directory alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reelwright.report.page import Page
from reelwright.report.plots import held_out_by_time, loss_curve, score_bars
from reelwright.report.scores import numbered_conditions
from reelwright.run import RunDirectory, is_number, step_of

SAMPLE_FORMATS = (".mp4", ".webm", ".gif")  # contact sheets lie there too, and would show the same again
DRAWN_METRICS = ("joint accuracy", "own clip is nearest", "PSNR to own clip (dB)")  # the table has all of them
SCORE_COLUMNS = ("metric", "row", "split", "value", "low", "high", "n")
MAX_SAMPLE_STEPS = 5
MAX_SAMPLES_A_STEP = 8
MAX_SAMPLE_BYTES = 8_000_000  # of one file: a page of long videos would not open

Records = Sequence[Mapping[str, Any]]


def write_run_page(run: RunDirectory) -> Path:
    """Write `report.html` from what lies in the run directory; parts that are not there yet are left out.

    Keys read from metrics.jsonl: step, loss, learning_rate, grad_norm, samples_per_second, heldout_loss, heldout_low,
    heldout_high, heldout_by_time. Returns the page's path.
    """
    records = run.read_metrics()
    page = Page(f"Run {run.path.resolve().name}", _subtitle(records))
    held_out = _series(records, "heldout_loss", "heldout_low", "heldout_high")
    unseen = all(record.get("heldout_split") != "train" for record in records)
    page.figures(_key_figures(records, held_out, "held-out loss" if unseen else "loss of training clips"))
    _verdict(page, held_out if unseen else [], unseen)
    _samples(page, run)
    _scores(page, run)
    _curves(page, records, held_out)
    if run.recipe_path.is_file():
        page.section("Recipe", "The resolved recipe; with it and the same data the run can be repeated.")
        page.code(run.recipe_path.read_text(encoding="utf-8", errors="replace"), "recipe.yaml")
    page.write(run.report_path)
    return run.report_path


def _subtitle(records: Records) -> str:
    steps = [record["step"] for record in records if is_number(record.get("step"))]
    return f"{max(steps):,} training steps" if steps else "No training step was logged yet."


def _series(records: Records, key: str, *more: str) -> list[tuple[float, ...]]:
    """(step, value of key, values of more) of the records that hold a finite `key`; a missing one of `more` is NaN."""
    return [
        (record["step"], record[key], *(_or_nan(record.get(name)) for name in more))
        for record in records
        if is_number(record.get("step")) and is_number(record.get(key))
    ]


def _key_figures(records: Records, held_out: Sequence[tuple[float, ...]], name: str) -> dict[str, str]:
    figures: dict[str, str] = {}
    if losses := _series(records, "loss"):
        recent = losses[-max(1, len(losses) // 20) :]
        figures["training loss, lately"] = f"{sum(point[1] for point in recent) / len(recent):.4g}"
    if held_out:
        best = min(held_out, key=lambda point: point[1])
        figures[f"{name}, last"] = f"{held_out[-1][1]:.4g}"
        figures[f"{name}, best (step {best[0]:,})"] = f"{best[1]:.4g}"
    if speeds := sorted(point[1] for point in _series(records, "samples_per_second")):
        figures["samples a second, median"] = f"{speeds[len(speeds) // 2]:.3g}"
    if norms := sorted(point[1] for point in _series(records, "grad_norm")):
        figures["gradient norm, median"] = f"{norms[len(norms) // 2]:.3g}"
    return figures


def _verdict(page: Page, held_out: Sequence[tuple[float, ...]], unseen: bool) -> None:
    """Whether the model is getting better, judged on clips it never trained on and their intervals."""
    if not unseen:
        page.verdict(
            "No clip is held out (data.validation = 0): the loss below is of training clips and tells memory only."
        )
        return
    if len(held_out) < 2:
        page.verdict("Whether it is getting better cannot be said yet: fewer than two held-out losses were measured.")
        return
    first, last, best = held_out[0], held_out[-1], min(held_out, key=lambda point: point[1])
    change = f"from {first[1]:.4g} at step {first[0]:,} to {last[1]:.4g} at step {last[0]:,}"
    if best is not last and last[2] > best[1] and last[1] > best[3]:
        page.verdict(
            f"Getting worse: the held-out loss is {last[1]:.4g}, above its best of {best[1]:.4g} at step {best[0]:,} "
            "by more than the intervals. The model is learning its training clips by heart; use the best checkpoint.",
            good=False,
        )
    elif last[3] < first[2]:
        page.verdict(f"Getting better: the held-out loss went {change}, clear of both intervals.", good=True)
    elif last[1] < first[1]:
        page.verdict(f"Probably getting better: the held-out loss went {change}, but the intervals are not clear.")
    else:
        page.verdict(f"Not getting better: the held-out loss went {change}.", good=False)


def _samples(page: Page, run: RunDirectory) -> None:
    """Newest samples first, then some of earlier steps."""
    by_step: dict[int, list[Path]] = {}
    left_out = 0
    for path in sorted(run.samples.glob("*")):
        if path.suffix.lower() not in SAMPLE_FORMATS or path.name.startswith("."):
            continue
        try:
            step = step_of(path)
        except ValueError:
            continue
        if path.stat().st_size > MAX_SAMPLE_BYTES:
            left_out += 1
        else:
            by_step.setdefault(step, []).append(path)
    if not by_step:
        return
    steps = sorted(by_step, reverse=True)
    if len(steps) > MAX_SAMPLE_STEPS:
        reach = len(steps) - 1
        steps = [steps[round(index * reach / (MAX_SAMPLE_STEPS - 1))] for index in range(MAX_SAMPLE_STEPS)]
    page.section("What it makes")
    for step in steps:
        page.text(f"Step {step:,}")
        page.videos([(path, _prompt(path)) for path in by_step[step][:MAX_SAMPLES_A_STEP]])
        left_out += max(0, len(by_step[step]) - MAX_SAMPLES_A_STEP)
    hidden = sum(len(paths) for step, paths in by_step.items() if step not in steps) + left_out
    if hidden:
        page.text(f"{hidden} more in {run.samples.name}/.")


def _prompt(path: Path) -> str:
    """The prompt and seed of the recipe beside a sample; nothing where it has none."""
    try:
        recipe = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
        seed = recipe.get("seed")
        return str(recipe.get("prompt", "")) + ("" if seed is None else f" · seed {seed}")
    except (OSError, ValueError, AttributeError):
        return ""


def _scores(page: Page, run: RunDirectory) -> None:
    scores, model = run.read_scores()
    if not scores:
        return
    step = f" Of the weights after {model['steps_trained']:,} steps." if is_number(model.get("steps_trained")) else ""
    page.section("Scores", f"Each value with its 95 % interval.{step}")
    drawn = [
        {**row, "row": ", ".join(str(row[key]) for key in ("row", "split") if row.get(key))}
        for row in scores
        if row.get("metric") in DRAWN_METRICS and is_number(row.get("value"))
    ]
    if drawn:
        page.image(score_bars(drawn))
    if run.evaluation_sheet.is_file():
        page.image(run.evaluation_sheet.read_bytes())
    numbers, conditions = numbered_conditions(scores)
    page.table(
        [*SCORE_COLUMNS, "how"],
        [[*(row.get(key) for key in SCORE_COLUMNS), number] for row, number in zip(scores, numbers, strict=True)],
    )
    for number, text in enumerate(conditions, start=1):
        page.text(f"How {number}: {text}.")


def _curves(page: Page, records: Records, held_out: Sequence[tuple[float, ...]]) -> None:
    train = [(step, loss) for step, loss in _series(records, "loss")]
    bounded = [(step, loss, low, high) for step, loss, low, high in held_out]
    if train or bounded:
        page.section("Loss")
        rates = [(step, rate) for step, rate in _series(records, "learning_rate")]
        page.image(loss_curve(train, bounded, rates))
    measured = [record for record in records if record.get("heldout_by_time") and is_number(record.get("step"))]
    times = measured[-1].get("heldout_times") if measured else None
    by_time = {
        int(record["step"]): [_or_nan(value) for value in record["heldout_by_time"]]
        for record in measured
        if record.get("heldout_times") == times  # a resumed run may measure at other times than before
    }
    if by_time:
        page.image(
            held_out_by_time(by_time, times),
            "Where the loss is: near t = 0 details are drawn, near t = 1 layout and motion are decided.",
        )


def _or_nan(value: Any) -> float:
    return float(value) if is_number(value) else math.nan
