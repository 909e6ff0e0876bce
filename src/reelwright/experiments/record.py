"""`experiment.json`: what an experiment set out to do and how far it is. One writer; any reader."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from reelwright.durable import replace_file
from reelwright.experiments.spec import Experiment
from reelwright.run import compare_recipes, finite
from reelwright.types import UsageError, UserError

RECORD = "experiment.json"
VERSION = 1
# unmeasured: trained, but its evaluation failed
Status = Literal["waiting", "trained", "done", "failed", "unmeasured", "stopped"]


@dataclass
class RunRecord:
    """How far one run is. Seconds are of the wall clock, over all sessions that ended by themselves."""

    levels: dict[str, str]
    seed: int
    overrides: list[str]
    recipe: dict[str, Any]
    status: Status = "waiting"
    reason: str = ""  # why it failed or was stopped
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    peak_memory_bytes: int | None = None  # of resident memory, training and evaluation
    peak_gpu_bytes: int | None = None  # allocated by torch; None: no GPU was used


@dataclass
class Record:
    """The experiment on disk."""

    question: str
    factors: dict[str, list[str]]
    seeds: list[int]
    measure: str
    evaluate: dict[str, Any] | None
    runs: dict[str, RunRecord] = field(default_factory=dict)

    @classmethod
    def of(cls, experiment: Experiment) -> Record:
        spec = experiment.spec
        return cls(
            question=spec.question,
            factors={name: list(levels) for name, levels in experiment.factors.items()},
            seeds=list(spec.seeds),
            measure=spec.measure,
            evaluate=spec.evaluate.plain() if spec.evaluate else None,
            runs={
                run.name: RunRecord(run.levels, run.seed, list(run.overrides), run.recipe.plain())
                for run in experiment.runs
            },
        )

    @classmethod
    def load(cls, out: Path) -> Record | None:
        """None where no experiment was begun. UserError where the file is damaged."""
        path = out / RECORD
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("version") != VERSION:
                raise ValueError("another version")
            return cls(**{**values, "runs": {name: RunRecord(**run) for name, run in values["runs"].items()}})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: damaged or of another version ({error}); the runs beside it are whole: move the file away "
                "and run the experiment again, it goes on with them"
            ) from None

    def save(self, out: Path) -> None:
        """Whole or not at all."""
        content = finite({"version": VERSION, **asdict(self)})
        replace_file(out / RECORD, json.dumps(content, indent=1, allow_nan=False))


def go_on(experiment: Experiment) -> tuple[Record, list[str]]:
    """The record to go on with, and what to say of how the spec differs from what was begun there.

    Runs may be added and left out; what was measured with other settings is measured again. UsageError where a run
    that is there would have another recipe now: it shows the differences and the ways out.
    """
    new, old = Record.of(experiment), Record.load(experiment.out)
    if old is None:
        return new, []
    _refuse_other_recipes(experiment, old, new)
    said: list[str] = []
    for what, names in {
        "more runs than before": [name for name in new.runs if name not in old.runs],
        "no longer in the spec (their folders stay, the comparison leaves them out)": [
            name for name in old.runs if name not in new.runs
        ],
    }.items():
        if names:
            said.append(f"the spec changed: {what}: {', '.join(names)}")
    measured_anew = old.evaluate != new.evaluate
    if measured_anew and any(run.status == "done" for run in old.runs.values()):
        said.append(
            f"the spec changed: evaluate was {old.evaluate}, is {new.evaluate}: finished runs are measured anew"
        )
    for name, run in new.runs.items():
        before = old.runs.get(name)
        if before is None:
            continue
        for key in ("status", "reason", "train_seconds", "evaluate_seconds", "peak_memory_bytes", "peak_gpu_bytes"):
            setattr(run, key, getattr(before, key))
        if measured_anew and run.status in ("done", "unmeasured"):
            run.status, run.evaluate_seconds = "trained", 0.0
    return new, said


def _refuse_other_recipes(experiment: Experiment, old: Record, new: Record) -> None:
    changes: dict[str, list[str]] = {}
    for name, run in new.runs.items():
        if name in old.runs:
            for difference in compare_recipes(old.runs[name].recipe, run.recipe, ("run_dir", "cache_dir")):
                changes.setdefault(str(difference).replace("in the run", "then"), []).append(name)
    if changes:
        lines = [
            f"{change}  ({'all runs' if len(names) == len(new.runs) else ', '.join(names)})"
            for change, names in changes.items()
        ]
        raise UsageError(
            f"{experiment.path}: {experiment.out} holds an experiment with other recipes:\n  "
            + "\n  ".join(lines)
            + "\nTo begin this one: another out: in the spec (or a copy of the spec in another folder); to go on with "
            "that one: take the changes back"
        )


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the experiment for one writer; the kernel lets go with the process, however it ends."""
    with (out / ".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: this experiment is running already; wait until it ends, or stop it") from None
        yield
