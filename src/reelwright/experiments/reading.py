"""One run directory -> what a comparison needs of it. Nothing but the directory is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reelwright.config import flatten
from reelwright.metrics.statistics import UNBOUNDED, possible_range
from reelwright.recipe import MAY_CHANGE
from reelwright.run import RunDirectory, is_number, score_conditions, step_of
from reelwright.training import checkpoint as checkpoints
from reelwright.types import UserError

HELD_OUT = "held-out loss"
VIDEO_FORMATS = (".mp4", ".webm", ".gif")
PLACES = frozenset({"run_dir", "cache_dir"})
# What makes no other model of a recipe: arms are told apart by the rest.
SAME_ARM = (
    (MAY_CHANGE | {"seed"}) - {"train.steps", "train.epochs"} - {k for k in MAY_CHANGE if k.startswith("sampling.")}
)
UNLIKE = frozenset(
    {"device", "prompts"}
)  # conditions of a score under which it may differ and be compared all the same


@dataclass(frozen=True)
class Measured:
    """One figure of a run. `noise` is its own standard error: what other draws of videos would change."""

    value: float
    noise: float = 0.0
    bounds: tuple[float, float] = UNBOUNDED  # the least and the greatest value it can have


@dataclass(frozen=True)
class Sample:
    """A sample video and what it was made by."""

    path: Path
    prompt: str
    seed: int
    step: int
    sampling: str


@dataclass
class RunFacts:
    """What one run directory says."""

    name: str
    path: Path
    recipe: dict[str, Any]  # flat: {'train.steps': 60}
    step: int = 0
    seconds: float | None = None  # of training
    curve: list[list[float | None]] = field(default_factory=list)  # of the held-out loss: step, loss, low, high
    measures: dict[str, Measured] = field(default_factory=dict)
    units: dict[str, dict[str, Any]] = field(default_factory=dict)  # measure -> what must be equal to compare it
    data_sha256: str | None = None  # of the training samples: clips, latents and captions
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int:
        return int(self.recipe.get("seed", 0))

    @property
    def checker(self) -> str | None:
        """The frozen checker that read the videos, where one did."""
        return next((unit["checker"] for unit in self.units.values() if "checker" in unit), None)

    @property
    def arm(self) -> str:
        """Equal for runs that differ by their seed alone."""
        return json.dumps({key: value for key, value in self.recipe.items() if key not in SAME_ARM}, sort_keys=True)


def read_run(path: Path) -> RunFacts:
    """UsageError where `path` holds no run; what a run lacks or has wrong is in `problems`."""
    run = RunDirectory.open(path)
    facts = RunFacts(run.path.resolve().name, run.path, flatten(run.read_recipe()))
    _read_metrics(run, facts)
    try:
        newest = checkpoints.newest_valid(run.checkpoints)
        if newest is None:
            facts.problems.append("no usable checkpoint")
        else:
            facts.data_sha256 = checkpoints.load_checkpoint(newest, stems=()).state.data_sha256 or None
    except UserError as damage:
        facts.problems.append(str(damage))
    _read_scores(run, facts)
    objective = {key: value for key, value in facts.recipe.items() if key.startswith("objective.")}
    facts.units.setdefault(HELD_OUT, {}).update(data=facts.data_sha256, **objective)
    facts.samples = _newest_samples(run)
    return facts


def _read_metrics(run: RunDirectory, facts: RunFacts) -> None:
    records = run.read_metrics()
    facts.step = max((int(record["step"]) for record in records if is_number(record.get("step"))), default=0)
    steps = facts.recipe.get("train.steps")
    if isinstance(steps, int) and facts.step < steps:
        facts.problems.append(f"not finished: step {facts.step} of {steps}")
    seconds = [record["seconds"] for record in records if is_number(record.get("seconds"))]
    facts.seconds = seconds[-1] if seconds else None
    measured = [record for record in records if "heldout_loss" in record]
    facts.curve = [
        [record["step"], *(_finite(record.get(key)) for key in ("heldout_loss", "heldout_low", "heldout_high"))]
        for record in measured
    ]
    if not measured:
        facts.problems.append("no held-out loss was measured")
        return
    last = measured[-1]
    facts.units[HELD_OUT] = {key: last.get(key) for key in ("heldout_split", "heldout_clips", "heldout_times")}
    lost = [record["step"] for record in measured if not is_number(record.get("heldout_loss"))]
    if lost:
        facts.problems.append(f"the held-out loss is not finite at step {', '.join(map(str, lost))}")
    if is_number(last.get("heldout_loss")):
        facts.measures[HELD_OUT] = Measured(float(last["heldout_loss"]), bounds=possible_range(HELD_OUT))


def _read_scores(run: RunDirectory, facts: RunFacts) -> None:
    """The model's own rows, not those it must be held against."""
    try:
        rows, _ = run.read_scores()
    except UserError as damage:
        facts.problems.append(str(damage))
        return
    most: dict[str, float] = {}  # videos behind the figure kept: a distance is given at N, N/2 and N/4
    for row in rows:
        if row.get("row") != "model" or HELD_OUT in str(row.get("metric")):
            continue
        name = f"{row['metric']} ({row['split']})" if row.get("split") else str(row["metric"])
        if not is_number(row.get("value")):
            facts.problems.append(f"{name}: no finite value")
            continue
        count = float(row["n"]) if is_number(row.get("n")) else 0.0
        if count < most.get(name, 0.0):
            continue
        most[name] = count
        unit = {key: value for key, value in score_conditions(row).items() if key not in UNLIKE}
        if "network" in unit and not is_number(row.get("low")):  # a distance between sets, which falls with their size
            unit["number of videos"] = count
        facts.units[name] = unit
        facts.measures[name] = _measured(row)


def _measured(row: Mapping[str, Any]) -> Measured:
    """A score with the standard error that its 95 % interval stands for."""
    value, low, high, n = row["value"], row.get("low"), row.get("high"), row.get("n")
    bounds = possible_range(str(row["metric"]))
    if low is None or high is None or not (is_number(low) and is_number(high)):
        return Measured(float(value), bounds=bounds)
    counted = is_number(n) and abs(value * n - round(value * n)) < 1e-6
    if bounds == UNBOUNDED and counted and 0 <= low <= high <= 1:  # so many of n
        bounds = (0.0, 1.0)
    return Measured(float(value), (high - low) / (2 * 1.96), bounds)


def _newest_samples(run: RunDirectory) -> list[Sample]:
    found: list[Sample] = []
    for path in sorted(run.samples.glob("step-*")):
        if path.suffix.lower() not in VIDEO_FORMATS:
            continue
        try:
            made = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
            sampling = " ".join(str(made.get(key)) for key in ("sampler", "steps", "guidance"))
            found.append(Sample(path, str(made["prompt"]), int(made["seed"]), step_of(path), sampling))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    newest = max((sample.step for sample in found), default=0)
    return [sample for sample in found if sample.step == newest]


def differing(runs: Sequence[RunFacts]) -> dict[str, list[Any]]:
    """{dotted key: its value in each run} of the settings that are not the same in all; None where one has it not."""
    keys = dict.fromkeys(key for run in runs for key in run.recipe)
    rows = {key: [run.recipe.get(key) for run in runs] for key in keys if key not in PLACES}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


def unequal(units: Sequence[Mapping[str, Any]]) -> list[str]:
    """The parts in which units differ."""
    keys = dict.fromkeys(key for unit in units for key in unit)
    return [key for key in keys if any(unit.get(key) != units[0].get(key) for unit in units)]


def _finite(value: Any) -> float | None:
    return float(value) if is_number(value) else None
