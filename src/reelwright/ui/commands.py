"""Jobs of the training lane as the command lines a person would type, and what can be read of their progress."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from reelwright.config import to_yaml
from reelwright.console import last_error
from reelwright.recipe import Recipe
from reelwright.run import RunDirectory
from reelwright.ui.admission import admit_data, admit_model, admit_recipe
from reelwright.ui.records import Job, JobProgress
from reelwright.ui.requests import (
    REQUESTS,
    EvaluateRequest,
    InspectRequest,
    PrepareRequest,
    TrainRequest,
)
from reelwright.ui.workspace import Workspace

TAIL_BYTES, MAX_MESSAGE = 16_384, 4000
_COUNTED = re.compile(r"(?P<stage>\S.*?) (?P<done>\d+)/(?P<total>\d+)(?: (?P<note>.*))?")  # console.Progress's lines


@dataclass(frozen=True)
class Command:
    """`reelwright ARGUMENTS`, run in the workspace's root."""

    arguments: tuple[str, ...]
    outputs: tuple[str, ...]  # names relative to the root
    answer: str = ""  # file name, in the job's folder, for what it prints on standard output
    run_dir: Path | None = None  # where training can be watched
    steps: int = 0


def command_for(workspace: Workspace, job: Job, folder: Path) -> Command:
    """The command line of a job, everything it names checked anew. `folder` is the job's own.

    A recipe with the page's changes is written into that folder: what was checked is what runs.
    """
    request = REQUESTS[job.kind].parse(job.request, origin=job.kind)
    if isinstance(request, TrainRequest):
        recipe = admit_recipe(workspace, request.recipe, request.changes)
        run = trained_run(workspace, request)
        arguments = ["train", _snapshot(recipe, folder), *([f"--fork={request.fork}"] if request.fork else [])]
        return Command(tuple(arguments), (run,), "", workspace.root / run, recipe.train.steps or 0)
    if isinstance(request, PrepareRequest):
        recipe = admit_recipe(workspace, request.recipe, request.changes)
        flags = [flag for flag, on in (("--verify", request.verify), ("--refit", request.refit)) if on]
        cache = workspace.root / recipe.cache_dir
        return Command(("prepare", _snapshot(recipe, folder), *flags), (_named(workspace, cache),))
    if isinstance(request, InspectRequest):
        data = admit_data(workspace, request)
        given = request.plain().items() if isinstance(data, Path) else ()
        settings = [f"{key}={value}" for key, value in given if key != "data" and value is not None]
        source = _snapshot(data, folder) if isinstance(data, Recipe) else str(data)
        page = folder / "inspection.html"
        outputs = tuple(_named(workspace, folder / name) for name in ("inspection.html", "inspection.json"))
        return Command(("inspect", source, *settings, f"--html={page}", "--json"), outputs, "inspection.json")
    assert isinstance(request, EvaluateRequest)
    return _evaluation(workspace, request, folder)


def trained_run(workspace: Workspace, request: TrainRequest) -> str:
    """The run directory that a training job writes, by its name in the workspace."""
    run_dir = request.fork or admit_recipe(workspace, request.recipe, request.changes).run_dir
    return _named(workspace, workspace.root / run_dir)


def _evaluation(workspace: Workspace, request: EvaluateRequest, folder: Path) -> Command:
    model = admit_model(workspace, request.model, everything=True)
    scores = folder / "scores.json"
    options = {name: value for name, value in request.plain().items() if name not in ("model", "raw")}
    flags = [f"--{name}={value}" for name, value in options.items() if value is not None]
    raw = ["--raw"] if request.raw else []
    return Command(("evaluate", str(model), *flags, *raw, f"--json={scores}"), (_named(workspace, scores),))


def _snapshot(recipe: Recipe, folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_text(to_yaml(recipe.plain()), encoding="utf-8")
    return str(path)


def _named(workspace: Workspace, path: Path) -> str:
    return workspace.relative(path.resolve())


def read_progress(command: Command, log_path: Path) -> JobProgress:
    """From the last counted line that was printed; while training, from the run's own figures."""
    lines = [line for line in tail(log_path).split("\n") if line.strip()]
    last = lines[-1].strip() if lines else "starting"
    counted = next((match for line in reversed(lines) if (match := _COUNTED.fullmatch(line.strip()))), None)
    progress = JobProgress(0, 0, last[:200])
    if counted:
        text = f"{counted['stage']} {counted['note'] or ''}".strip()
        progress = JobProgress(int(counted["done"]), int(counted["total"]), text[:200])
    training = command.run_dir is not None and any(" parameters on " in line for line in lines)
    if training and command.run_dir is not None:
        figures = RunDirectory(command.run_dir).recent_metrics()
        total = command.steps or (progress.total if counted and counted["stage"] == "training" else 0)
        step = int(figures.get("step", 0))
        if counted and counted["stage"] == "training":
            step = max(step, progress.done)
        loss = f", loss {figures['loss']:.4f}" if "loss" in figures else ""
        return JobProgress(step, total, f"training{loss}")
    return progress


def final_message(log_path: Path, code: int) -> str:
    """Why a command failed: its one message, else the end of what it printed."""
    text = tail(log_path)
    if message := last_error(text):
        return message[:MAX_MESSAGE]
    ended = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    hint = " (the memory may have been full)" if code == -9 else ""
    return f"the command {ended}{hint}. It last said: {text.strip()[-500:] or 'nothing'}"


def tail(path: Path, max_bytes: int = TAIL_BYTES) -> str:
    """The end of a growing text file; '' where there is none."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - max_bytes))
            return file.read(max_bytes).decode("utf-8", "replace")
    except OSError:
        return ""
