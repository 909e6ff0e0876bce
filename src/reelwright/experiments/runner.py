"""Spec -> runs, one after the other, each the command a person would type. The same command again goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from reelwright.children import POLL_SECONDS
from reelwright.config import to_yaml
from reelwright.durable import replace_file
from reelwright.experiments.processes import Ended, run_command
from reelwright.experiments.record import Record, RunRecord, go_on, locked
from reelwright.experiments.spec import Experiment, PlannedRun
from reelwright.run import RunDirectory
from reelwright.signals import INTERRUPTED_CODES, stop_signals
from reelwright.types import UserError

LEFT_BEHIND_SECONDS = 90.0  # how long the child of a killed experiment may take to save and end
UNSAID = "interrupted"
FAILED = ("failed", "unmeasured")


class Progress(Protocol):
    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...
    def say(self, message: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How it ended; `record` is as saved."""

    record: Record
    interrupted: bool
    out_of_time: bool

    @property
    def failed(self) -> list[str]:
        return [name for name, run in self.record.runs.items() if run.status in FAILED]


def run_experiment(experiment: Experiment, progress: Progress) -> Outcome:
    """Train and measure every run that is not done. A run that fails says why and does not stop the others.

    UsageError where the folder holds another experiment, UserError where one is running there.
    """
    out = experiment.out
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        record, said = go_on(experiment)
        for line in said:
            progress.say(line)
        record.save(out)
        with stop_signals() as signals:
            session = _Session(experiment, record, progress, signals)
            for run in experiment.runs:
                if signals or session.out_of_time:
                    break
                session.bring_up_to_date(run)
    return Outcome(record, bool(signals), session.out_of_time)


class _Session:
    """One call of the command: what all its runs share."""

    def __init__(self, experiment: Experiment, record: Record, progress: Progress, signals: list[str]) -> None:
        self.experiment, self.record, self.progress, self.signals = experiment, record, progress, signals
        self.started = time.monotonic()
        self.limits = experiment.spec.limits

    @property
    def out_of_time(self) -> bool:
        allowed = self.limits.minutes
        return allowed is not None and time.monotonic() - self.started > 60 * allowed

    def bring_up_to_date(self, run: PlannedRun) -> None:
        """Whatever of training and measuring is still to be done for one run."""
        state = self.record.runs[run.name]
        if state.status == "done" or (state.status == "stopped" and not self._may_train_on(run, state)):
            return
        number = list(self.record.runs).index(run.name) + 1
        self.progress.say(f"run {number} of {len(self.record.runs)}: {run.name}")
        try:
            if state.status not in ("trained", "unmeasured") and not self._train(run, state):
                return
            self._evaluate(run, state)
        except (UserError, OSError) as error:
            self._end(run, state, "failed", str(error))

    def _train(self, run: PlannedRun, state: RunRecord) -> bool:
        """Whether it is trained now."""
        directory = RunDirectory(run.recipe.run_dir)
        _wait_until_free(directory, self.progress)
        recipe = self.experiment.out / "recipes" / f"{run.name}.yaml"
        recipe.parent.mkdir(parents=True, exist_ok=True)
        replace_file(recipe, to_yaml(run.recipe.plain()))
        steps, resumed_at = run.recipe.train.steps, int(directory.recent_metrics().get("step", 0))
        spent = max(state.train_seconds, directory.recent_metrics().get("seconds", 0.0))

        def stop() -> str:
            allowed = self.limits.minutes_a_run
            if self.signals:
                return UNSAID
            if allowed is not None and spent + time.monotonic() - began > 60 * allowed:
                return f"limits.minutes_a_run = {allowed:g}"
            return ""

        first: list[float] = []  # seconds and step when the first new step was seen: before lies the preparation

        def tick(seconds: float) -> None:
            step = int(directory.recent_metrics().get("step", 0))
            if not first and step > resumed_at:
                first.extend((seconds, step))
            left = None
            if steps and first and step > first[1]:
                left = (seconds - first[0]) / (step - first[1]) * (steps - step)
            self._show(run, f"step {step}" + (f"/{steps}" if steps else ""), spent + seconds, left)

        began = time.monotonic()
        ended = self._run(run, ["train", recipe], tick, stop)
        state.train_seconds = spent + ended.seconds
        _keep_peaks(state, ended)
        if ended.code == 0:
            self._end(run, state, "trained")
            return True
        if ended.stopped and ended.stopped != UNSAID:
            step = int(directory.recent_metrics().get("step", 0))
            self._end(run, state, "stopped", f"{ended.stopped}: stopped after step {step}, saved")
        elif ended.stopped or (ended.code in INTERRUPTED_CODES and self.signals):
            self.record.save(self.experiment.out)
        else:
            self._end(run, state, "failed", f"train: {ended.reason}")
        return False

    def _evaluate(self, run: PlannedRun, state: RunRecord) -> None:
        settings = self.experiment.spec.evaluate
        if settings is None:
            self._end(run, state, "done")
            return
        words: list[object] = ["evaluate", run.recipe.run_dir, "--metrics", ",".join(settings.metrics)]
        words += ["--prompts", settings.prompts, "--seed", settings.seed]
        for split in settings.splits:
            words += ["--split", split]
        for name in ("sampler", "steps", "guidance", "clip", "features"):
            if (value := getattr(settings, name)) is not None:
                words += [f"--{name}", value]

        def tick(seconds: float) -> None:
            self._show(run, "measuring", state.train_seconds + seconds, 0.0)

        ended = self._run(run, words, tick, lambda: UNSAID * bool(self.signals))
        state.evaluate_seconds += ended.seconds
        _keep_peaks(state, ended)
        if ended.code == 0:
            self._end(run, state, "done")
        elif not ended.stopped:
            self._end(run, state, "unmeasured", f"evaluate: {ended.reason}")

    def _run(
        self, run: PlannedRun, words: list[object], tick: Callable[[float], None], stop: Callable[[], str]
    ) -> Ended:
        log = self.experiment.out / "logs" / f"{run.name}.log"
        return run_command(words, log, self.experiment.folder, tick, stop, kill=lambda: len(self.signals) > 1)

    def _end(self, run: PlannedRun, state: RunRecord, status: Any, reason: str = "") -> None:
        state.status, state.reason = status, reason
        self.record.save(self.experiment.out)
        if reason:
            self.progress.say(f"{run.name} {status}: {reason}")

    def _may_train_on(self, run: PlannedRun, state: RunRecord) -> bool:
        """Whether a run that a limit stopped has time again."""
        allowed = self.limits.minutes_a_run
        spent = max(state.train_seconds, RunDirectory(run.recipe.run_dir).recent_metrics().get("seconds", 0.0))
        return allowed is None or spent < 60 * allowed

    def _show(self, run: PlannedRun, doing: str, spent: float, left_here: float | None) -> None:
        """`spent` seconds on this run, about `left_here` more of training it; None: not known yet."""
        runs = self.record.runs
        ended = sum(state.status in ("done", "stopped", *FAILED) for state in runs.values())
        left = self._seconds_left(run, spent, left_here)
        note = f"{run.name}: {doing}" + ("" if left is None else f", about {duration(left)} left")
        self.progress("runs done", ended, len(runs), note)

    def _seconds_left(self, run: PlannedRun, spent: float, left_here: float | None) -> float | None:
        """By the mean of the runs that are done, else by how far this one is; None while neither says anything."""
        runs = self.record.runs
        done = [state.train_seconds + state.evaluate_seconds for state in runs.values() if state.status == "done"]
        if done:
            one = sum(done) / len(done)
        elif left_here is not None:
            one = spent + left_here
        else:
            return None
        waiting = sum(state.status in ("waiting", "trained") and name != run.name for name, state in runs.items())
        return one * waiting + max(left_here or 0.0, one - spent)


def duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def _keep_peaks(state: RunRecord, ended: Ended) -> None:
    state.peak_memory_bytes = max(state.peak_memory_bytes or 0, ended.peak_memory_bytes)
    if ended.peak_gpu_bytes is not None:
        state.peak_gpu_bytes = max(state.peak_gpu_bytes or 0, ended.peak_gpu_bytes)


def _wait_until_free(directory: RunDirectory, progress: Progress) -> None:
    """Wait while the trainer of an experiment that was killed still saves. UserError, its holder's, where it stays."""
    if not directory.lock_path.exists():
        return
    deadline, told = time.monotonic() + LEFT_BEHIND_SECONDS, False
    while True:
        try:
            with directory.lock():
                return
        except UserError:
            if time.monotonic() > deadline:
                raise
            if not told:
                progress.say(f"{directory.path}: waiting for an earlier process to save and end")
                told = True
            time.sleep(POLL_SECONDS)
