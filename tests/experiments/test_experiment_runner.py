"""Runs in turn: resumed, limited, one that fails stopping none; a changed spec says what differs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from experiment_runs import write_run

from reelwright.config import to_yaml
from reelwright.experiments import runner
from reelwright.experiments.comparison import compare_experiment
from reelwright.experiments.processes import Ended
from reelwright.experiments.record import Record, locked
from reelwright.experiments.runner import Outcome, run_experiment
from reelwright.experiments.spec import load_experiment
from reelwright.recipe import Recipe
from reelwright.run import RunDirectory
from reelwright.types import UsageError, UserError


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notes: list[str] = []

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        self.notes.append(f"{stage} {done}/{total} {note}")

    def say(self, message: str) -> None:
        self.lines.append(message)


class Commands:
    """In place of child processes: training leaves a run directory at once, and what fails is chosen."""

    def __init__(self) -> None:
        self.given: list[list[str]] = []
        self.fail: Callable[[str], str] = lambda command: ""
        self.seconds = 3.0

    def __call__(self, arguments: Any, log: Path, folder: Path, on_tick: Any, stop: Any, kill: Any) -> Ended:
        words = [str(word) for word in arguments]
        self.given.append(words)
        on_tick(self.seconds)
        if stopped := stop():
            return Ended(130, self.seconds, 100, None, "exit code 130", stopped)
        if reason := self.fail(" ".join(words)):
            return Ended(1, self.seconds, 100, None, reason)
        if words[0] == "train":
            recipe = Recipe.load(Path(words[1]))
            if not RunDirectory(recipe.run_dir).exists():
                write_run(recipe, losses=(1.0, 0.5 + 0.1 * recipe.seed))
        on_tick(self.seconds)
        return Ended(0, self.seconds, 200 if words[0] == "train" else 300, 50, "")

    def commands(self) -> list[str]:
        return [f"{words[0]} {Path(words[1]).name.removesuffix('.yaml')}" for words in self.given]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    fake = Commands()
    monkeypatch.setattr(runner, "run_command", fake)
    return fake


@pytest.fixture
def begin(tmp_path: Path, write_recipe: Any) -> Callable[..., tuple[Outcome, Said]]:
    base = write_recipe()

    def run(**values: Any) -> tuple[Outcome, Said]:
        spec = {
            "question": "?", "base": base.name, "factors": {"model.depth": [2, 4]}, "seeds": [0, 1],
            "evaluate": {"prompts": 8, "metrics": ["shapes", "heldout"], "splits": ["in_distribution"], "steps": 2},
        }  # fmt: skip
        (tmp_path / "experiment.yaml").write_text(to_yaml({**spec, **values}), encoding="utf-8")
        said = Said()
        return run_experiment(load_experiment(tmp_path), said), said

    return run


ALL = [f"model.depth={depth},seed={seed}" for depth in (2, 4) for seed in (0, 1)]


def states(outcome: Outcome) -> list[str]:
    return [run.status for run in outcome.record.runs.values()]


def test_each_run_is_trained_then_measured_and_only_once(begin: Any, commands: Commands, tmp_path: Path) -> None:
    outcome, said = begin()
    assert commands.commands() == [f"{verb} {name}" for name in ALL for verb in ("train", "evaluate")]
    words = "--metrics shapes,heldout --prompts 8 --seed 0 --split in_distribution --steps 2"
    assert commands.given[1][2:] == words.split()
    assert states(outcome) == ["done"] * 4 and not outcome.interrupted and outcome.failed == []
    assert said.lines[0] == f"run 1 of 4: {ALL[0]}" and said.notes[-1].startswith("runs done 3/4")
    assert any("about" in note and "left" in note for note in said.notes)
    run = outcome.record.runs[ALL[0]]
    assert (run.train_seconds, run.evaluate_seconds, run.peak_memory_bytes, run.peak_gpu_bytes) == (3.0, 3.0, 300, 50)
    recipe = Recipe.load(tmp_path / "recipes" / f"{ALL[0]}.yaml")
    assert (
        recipe.run_dir == tmp_path / "runs" / ALL[0]
        and recipe.cache_dir == Recipe.load(tmp_path / "recipe.yaml").cache_dir
    )
    begin()
    assert len(commands.given) == 8, "nothing is done twice"
    compared = compare_experiment(tmp_path)
    assert [answer["verdict"] for answer in compared.answers] == ["equal"]


def test_a_failure_stops_none_of_the_others_and_is_tried_again(begin: Any, commands: Commands, tmp_path: Path) -> None:
    commands.fail = lambda command: "no memory" if ALL[1] in command else ""
    outcome, said = begin()
    assert states(outcome) == ["done", "failed", "done", "done"] and outcome.failed == [ALL[1]]
    assert f"{ALL[1]} failed: train: no memory" in said.lines
    commands.fail = lambda command: "no clips" if command.startswith("evaluate") else ""
    commands.given.clear()
    assert states(begin()[0]) == ["done", "unmeasured", "done", "done"]
    assert commands.commands() == [f"train {ALL[1]}", f"evaluate {ALL[1]}"]
    assert compare_experiment(tmp_path).warnings == [f"1 of 4 runs could not be measured: {ALL[1]}"]
    commands.fail = lambda command: ""
    commands.given.clear()
    assert states(begin()[0]) == ["done"] * 4 and commands.commands() == [f"evaluate {ALL[1]}"]


def test_a_signal_stops_the_run_and_starts_no_other(begin: Any, commands: Commands) -> None:
    commands.fail = lambda command: os.kill(os.getpid(), signal.SIGINT) or ""
    outcome, _ = begin(evaluate=None)
    assert outcome.interrupted and states(outcome) == ["done", *["waiting"] * 3]
    commands.fail = lambda command: ""
    assert states(begin(evaluate=None)[0]) == ["done"] * 4


def test_limits(begin: Any, commands: Commands) -> None:
    commands.seconds = 0.5
    outcome, _ = begin(limits={"minutes": 1e-9})
    assert outcome.out_of_time and states(outcome) == ["waiting"] * 4 and commands.given == []
    outcome, said = begin(limits={"minutes_a_run": 1e-9})
    assert states(outcome) == ["stopped"] * 4 and "limits.minutes_a_run = 1e-09" in said.lines[1]
    commands.given.clear()
    assert states(begin(limits={"minutes_a_run": 1e-9})[0]) == ["stopped"] * 4 and commands.given == []
    assert states(begin()[0]) == ["done"] * 4


def test_a_changed_spec_says_what_differs(begin: Any, commands: Commands) -> None:
    begin()
    with pytest.raises(UsageError) as error:
        begin(overrides=["train.learning_rate=0.5"])
    assert "train.learning_rate: 0.002 then, 0.5 now  (all runs)" in str(
        error.value
    ) and "take the changes back" in str(error.value)
    with pytest.raises(
        UsageError, match=r"model.width: 32 then, 64 now  \(model.depth=4,seed=0, model.depth=4,seed=1\)"
    ):
        begin(factors={"model.depth": {"2": ["model.depth=2"], "4": ["model.depth=4", "model.width=64"]}})
    commands.given.clear()
    _, said = begin(seeds=[0, 2])
    assert commands.commands() == [f"{v} model.depth={d},seed=2" for d in (2, 4) for v in ("train", "evaluate")]
    assert "the spec changed: more runs than before: model.depth=2,seed=2, model.depth=4,seed=2" in said.lines
    assert any("no longer in the spec" in line and "model.depth=2,seed=1" in line for line in said.lines)
    commands.given.clear()
    _, said = begin(seeds=[0], evaluate={"metrics": ["heldout"]})
    assert [words[0] for words in commands.given] == ["evaluate"] * 2 and any("measured anew" in x for x in said.lines)


def test_one_experiment_a_folder_at_a_time(begin: Any, commands: Commands, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="running already"):
        begin()
    assert commands.given == []


def test_a_run_that_an_earlier_process_still_saves_is_waited_for(
    begin: Any, commands: Commands, tmp_path: Path, monkeypatch: Any
) -> None:
    run = RunDirectory.create(tmp_path / "runs" / ALL[0])
    with run.lock():
        monkeypatch.setattr(runner, "LEFT_BEHIND_SECONDS", 0.0)
        outcome, _ = begin()
        assert states(outcome) == ["failed", "done", "done", "done"]
        assert "already being written" in outcome.record.runs[ALL[0]].reason
    assert states(begin()[0]) == ["done"] * 4


@pytest.mark.parametrize(("seconds", "shown"), [(5, "5 s"), (150, "2 min"), (7300, "2.0 h")])
def test_durations(seconds: float, shown: str) -> None:
    assert runner.duration(seconds) == shown


def reelwright(*words: object, **options: Any) -> subprocess.Popen:
    command = [sys.executable, "-m", "reelwright", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen, seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.full
def test_the_template_killed_interrupted_and_resumed_says_the_right_thing(tmp_path: Path) -> None:
    """2 factors x 2 levels x 2 seeds on moving shapes: one factor matters, the other is two names of one setting."""
    folder = tmp_path / "rate"
    assert reelwright("experiment", "new", folder).wait() == 0
    runs = folder / "runs"

    killed = reelwright("experiment", folder)
    wait_for(lambda: list(runs.glob("*/checkpoints/step-*")), killed)
    killed.kill()
    killed.communicate()
    wait_for_end = time.monotonic() + 60
    while _children_of(folder):
        assert time.monotonic() < wait_for_end, "the trainer was left behind"
        time.sleep(0.1)

    stopped = reelwright("experiment", folder)
    wait_for(lambda: len({path.parent for path in runs.glob("*/checkpoints/step-*")}) > 1, stopped)
    stopped.send_signal(signal.SIGINT)
    out, _ = stopped.communicate(timeout=600)
    assert stopped.returncode == 130 and "the same command goes on" in out and not _children_of(folder)
    record = Record.load(folder)
    assert record is not None and 1 <= sum(run.status == "done" for run in record.runs.values()) < 8

    last = reelwright("experiment", folder)
    out, _ = last.communicate(timeout=3600)
    assert last.returncode == 0, out
    assert "learning rate: a difference larger than the noise" in out
    assert "train.micro_batch: no difference at all. Every run at '8' has exactly the held-out loss" in out
    page = (folder / "compare.html").read_text(encoding="utf-8")
    assert "a difference larger than the noise" in page and page.count("<video") == 8
    assert not re.search(r"https?://", page)
    logs = "".join(path.read_text() for path in (folder / "logs").glob("*.log"))
    assert logs.count("resuming from step-") >= 1 and len(list((folder / "cache" / "fitted").glob("codec-*"))) == 1
    facts = json.loads(reelwright("compare", folder, "--json").communicate()[0])
    assert [answer["verdict"] for answer in facts["answers"]] == ["larger", "equal"]
    assert all(run["status"] == "done" and run["peak_memory_bytes"] > 1e8 for run in facts["runs"])


def _children_of(folder: Path) -> list[str]:
    """Our processes at work in this folder."""
    shown = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in shown.splitlines() if str(folder) in line and "reelwright.experiments.child" in line]
