"""The run directory: the one interface between a training run and everything that looks at it.

    recipe.yaml       the resolved recipe, enough to repeat the run
    metrics.jsonl     one JSON object a line, with its step
    training.log      what was said, line by line, for people and `tail -f`
    samples/          step-0001000-00.mp4 ... with their recipes beside them
    checkpoints/      step-0001000/ ...
    scores.json       what `evaluate` measured
    evaluation.png    what it looked at
    report.html       all of it on one page

Whoever trains holds the lock; reading needs none.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import multiprocessing.util
import os
import re
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from reelwright.config import flatten, read_yaml, to_yaml
from reelwright.durable import replace_file
from reelwright.types import UsageError, UserError

_STEP_NAME = re.compile(r"step-(\d{7,})")
_LOGGED_STEP = re.compile(r"\S+ \S+  step +(\d+)  ")
_NOT_SET = object()
_OTHER_FOLDERS = ("model_index.json", "manifest.json")  # an exported model and a checkpoint hold a recipe.yaml too
_TAIL_BYTES = 8192  # of metrics.jsonl: its last lines
FIGURES = ("row", "split", "metric", "value", "low", "high", "n")  # of a score; its other keys are its conditions


class RunDirectory:
    """A run on disk. Making the object touches nothing; `create` makes the folders, `open` wants an existing run."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.recipe_path = self.path / "recipe.yaml"
        self.metrics_path = self.path / "metrics.jsonl"
        self.log_path = self.path / "training.log"
        self.lock_path = self.path / "lock"
        self.scores_path = self.path / "scores.json"
        self.evaluation_sheet = self.path / "evaluation.png"
        self.report_path = self.path / "report.html"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"

    @classmethod
    def create(cls, path: Path) -> RunDirectory:
        """Make the folders; a directory that is there already keeps all it has. UsageError where that cannot be."""
        run = cls(path)
        try:
            for folder in (run.path, run.samples, run.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"run_dir = {path}: cannot be made ({error.strerror}); give another run_dir") from None
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """A run that exists. UsageError where `path` holds none."""
        run = cls(path)
        if not run.exists():
            what = "an exported model or a single checkpoint" if run.recipe_path.is_file() else "it has no recipe.yaml"
            raise UsageError(f"{path}: not a run directory ({what}); give a run_dir that was trained")
        return run

    def exists(self) -> bool:
        """Whether a run was started here: its recipe is written before anything else."""
        return self.recipe_path.is_file() and not any((self.path / name).exists() for name in _OTHER_FOLDERS)

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    # What was asked for

    def write_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Save the resolved recipe, whole or not at all."""
        replace_file(self.recipe_path, to_yaml(recipe))

    def read_recipe(self) -> dict[str, Any]:
        return read_yaml(self.recipe_path)

    # What happened

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line; no kill undoes it once this returns. NaN and infinities become null, as JSON lacks them."""
        _append_line(self.metrics_path, json.dumps(finite(record), allow_nan=False), keep_partial=False)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines in order. A last line that a kill left half written is passed over; UserError for any other."""
        records = []
        lines = _read_lines(self.metrics_path)
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("not an object")
            except ValueError:
                if number == len(lines):
                    break
                raise UserError(
                    f"{self.metrics_path}, line {number}: not a JSON object; the file was damaged from outside. "
                    "Delete that line to go on"
                ) from None
            records.append(record)
        return records

    def recent_metrics(self) -> dict[str, float]:
        """The newest figure of every key among the last lines, read from the file's end; {} where there is none."""
        found: dict[str, float] = {}
        try:
            with self.metrics_path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = file.read().split(b"\n")
        except OSError:
            return found
        for line in lines:  # the first may begin, and the last may end, in the middle of a record
            try:
                record = json.loads(line)
            except ValueError:
                continue
            for key, value in record.items() if isinstance(record, dict) else ():
                found.pop(key, None)  # a loss that is no number any more is not told by an older one
                if is_number(value):
                    found[key] = value
        return found

    def log(self, message: str, step: int | None = None) -> None:
        """Add to training.log with the local time; give the step where the line should be rewound with it."""
        stamp = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
        place = "" if step is None else f"step {step:>7}  "
        for line in message.splitlines() or [""]:
            _append_line(self.log_path, f"{stamp}  {place}{line}", keep_partial=True)

    def rewind(self, step: int) -> None:
        """Drop every metric and log line of a step after `step`; lines without a step stay. Each file atomically."""
        if self.metrics_path.is_file():
            kept = [record for record in self.read_metrics() if record.get("step", step) <= step]
            replace_file(self.metrics_path, "".join(json.dumps(record) + "\n" for record in kept))
        if self.log_path.is_file():
            lines = self.log_path.read_bytes().decode("utf-8", "replace").split("\n")
            logged = [int(match[1]) if (match := _LOGGED_STEP.match(line)) else step for line in lines]
            replace_file(self.log_path, "\n".join(line for line, at in zip(lines, logged, strict=True) if at <= step))

    # What was made

    def sample_path(self, step: int, index: int, suffix: str = ".mp4") -> Path:
        return self.samples / f"step-{step:07d}-{index:02d}{suffix}"

    def checkpoint_path(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:07d}"

    def list_checkpoints(self) -> list[Path]:
        """Checkpoint directories, oldest first, by name alone: whether one is whole, its manifest tells."""
        if not self.checkpoints.is_dir():
            return []
        found = [path for path in self.checkpoints.iterdir() if _STEP_NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(found, key=step_of)

    def write_scores(self, rows: Sequence[Mapping[str, Any]], model: Mapping[str, Any]) -> None:
        """Save measurements of one model, which `model` tells by the "sha256" of its weights and what more is known.

        Each is {"row": "model", "metric": "joint accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "n": 256}: who was
        measured, by what, the value with its 95 % interval, on how many; "split" may be added. All keys beyond these
        FIGURES are the conditions of that very measurement: {"sampler": "euler", "steps": 8, "seed": 0}.
        """
        for row in rows:
            if missing := {"row", "metric", "value"} - set(row):
                raise ValueError(f"a score needs row, metric and value; {dict(row)} lacks {', '.join(sorted(missing))}")
        content = {"model": finite(model), "scores": [finite(row) for row in rows]}
        replace_file(self.scores_path, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def read_scores(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The rows and the model `write_scores` saved; ([], {}) where nothing was measured yet."""
        if not self.scores_path.is_file():
            return [], {}
        try:
            content = json.loads(self.scores_path.read_text(encoding="utf-8"))
            return [dict(row) for row in content["scores"]], dict(content["model"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.scores_path}: damaged ({error!r}); run `reelwright evaluate` again") from None

    # Who may write

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for one writer. UserError at once, naming the holder, where another process has it.

        The kernel drops the lock with its process, so that one killed by -9 leaves nothing to clean up. The file
        itself stays: removing it would let two processes lock two files of one name.
        """
        file = self.lock_path.open("ab+", buffering=0)
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read(200).decode("utf-8", "replace").strip() or "another process"
                raise UserError(
                    f"{self.path}: already being written by {holder}. Wait until it ends or stop it, "
                    "or train with another run_dir"
                ) from None
            # A forked data worker shares the lock and would hold it on after the trainer was killed.
            multiprocessing.util.register_after_fork(file, lambda inherited: inherited.close())
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            try:
                yield
            finally:
                file.truncate(0)


def step_of(path: Path) -> int:
    """The step in a checkpoint's or sample's name: step-0001000 -> 1000. ValueError where there is none."""
    match = _STEP_NAME.match(path.name)
    if match is None:
        raise ValueError(f"{path.name}: a checkpoint or sample is named step-0001000")
    return int(match[1])


@dataclass(frozen=True)
class RecipeDifference:
    """One setting that is not what it was; as text `train.learning_rate: 0.0001 in the run, 0.0003 now`."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old)} in the run, {_shown(self.new)} now"


def compare_recipes(old: Mapping[str, Any], new: Mapping[str, Any], allowed: Collection[str]) -> list[RecipeDifference]:
    """Settings that differ although they may not, in the order of the recipe.

    `allowed` holds dotted keys that may differ; a group allows all in it (`train.tracker` allows `train.tracker.type`).
    """
    before, after = flatten(old), flatten(new)
    keys = [*before, *(key for key in after if key not in before)]

    def may_differ(key: str) -> bool:
        return any(key == name or key.startswith(name + ".") for name in allowed)

    pairs = ((key, before.get(key, _NOT_SET), after.get(key, _NOT_SET)) for key in keys if not may_differ(key))
    return [RecipeDifference(key, was, now) for key, was, now in pairs if was != now]


def _shown(value: Any) -> str:
    return "not set" if value is _NOT_SET else json.dumps(value, ensure_ascii=False, default=str)


def score_conditions(row: Mapping[str, Any]) -> dict[str, Any]:
    """How a score was measured: what its row holds besides the FIGURES."""
    return {key: value for key, value in row.items() if key not in FIGURES and value is not None}


def is_number(value: Any) -> bool:
    """Whether a value of a metrics line or a score is a figure: neither null nor infinite, nor a truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def finite(value: Any) -> Any:
    """JSON values with null for NaN and infinities."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_lines(path: Path) -> list[str]:
    """Lines by newline alone: str.splitlines would also cut at characters that JSON leaves inside strings."""
    if not path.is_file():
        return []
    return [line for line in path.read_bytes().decode("utf-8", "replace").split("\n") if line.strip()]


def _append_line(path: Path, line: str, keep_partial: bool) -> None:
    """Append, and hand it to the kernel: a kill of this process cannot undo it any more.

    A line that an earlier kill left without its newline is ended first, or dropped.
    """
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                if keep_partial:
                    line = "\n" + line
                else:
                    file.truncate(path.read_bytes().rfind(b"\n") + 1)
        file.write(line.encode("utf-8", "backslashreplace") + b"\n")
