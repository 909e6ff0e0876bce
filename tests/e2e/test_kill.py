"""kill -9 at any instant, the same command again: the same bytes as a run that was left alone."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from reelwright.run import RunDirectory

TIMING = ("seconds", "samples_per_second")
SETTINGS = ("train.save_every=5", "train.log_every=3", "train.evaluate_every=10")


def start(recipe: Path) -> subprocess.Popen[bytes]:
    """The command as a user types it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "reelwright", "train", str(recipe)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def finish(recipe: Path) -> Path:
    """Run to the end; the run directory."""
    process = start(recipe)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    return recipe.parent / "run"


def kill_when(recipe: Path, condition: Any, deadline_seconds: float = 120.0) -> bool:
    """Start, kill -9 as soon as `condition()` holds; whether it was still running then."""
    process = start(recipe)
    end = time.monotonic() + deadline_seconds
    while process.poll() is None and not condition() and time.monotonic() < end:
        time.sleep(0.001)
    running = process.poll() is None
    process.kill()
    process.communicate()
    return running


def logged(run: Path) -> int:
    """The last step that metrics.jsonl holds."""
    return max((r["step"] for r in RunDirectory(run).read_metrics()), default=0)


def saving(run: Path) -> bool:
    """Whether a checkpoint is being written at this moment."""
    return any((run / "checkpoints").glob(".writing-*"))


def result(run: Path, step: int) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """sha256 of every tensor file of the last checkpoint, and the metrics without what the clock decides."""
    files = sorted((run / "checkpoints" / f"step-{step:07d}").glob("*.safetensors"))
    assert {path.stem for path in files} == {"model", "ema", "optimizer", "codec"}
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    lines = RunDirectory(run).read_metrics()
    return hashes, [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def test_killed_once(write_recipe, tmp_path):
    whole = finish(write_recipe(*SETTINGS, "train.steps=30", folder=tmp_path / "whole"))
    recipe = write_recipe(*SETTINGS, "train.steps=30", folder=tmp_path / "killed")
    run = recipe.parent / "run"
    at = random.Random(0).randrange(6, 25)
    assert kill_when(recipe, lambda: logged(run) >= at), "it ended before it was killed"
    assert result(finish(recipe), 30) == result(whole, 30)
    assert "resuming from step-" in (run / "training.log").read_text()


@pytest.mark.full
def test_killed_three_times_at_random_points(write_recipe, tmp_path):
    whole = finish(write_recipe(*SETTINGS, "train.steps=60", folder=tmp_path / "whole"))
    recipe = write_recipe(*SETTINGS, "train.steps=60", folder=tmp_path / "killed")
    run = recipe.parent / "run"
    for at in sorted(random.Random(1).sample(range(3, 55), 3)):
        assert kill_when(recipe, lambda at=at: logged(run) >= at)
    assert result(finish(recipe), 60) == result(whole, 60)


@pytest.mark.full
def test_killed_ten_times_half_of_them_inside_saves(write_recipe, tmp_path):
    settings = (*SETTINGS, "train.steps=120", "train.save_every=2")
    whole = finish(write_recipe(*settings, folder=tmp_path / "whole"))
    recipe = write_recipe(*settings, folder=tmp_path / "killed")
    run = recipe.parent / "run"
    draw = random.Random(2)
    inside = 0
    for number in range(10):
        goal = logged(run) + draw.randrange(3, 9)
        if number % 2:
            kill_when(recipe, lambda goal=goal: logged(run) >= goal and saving(run))
            inside += saving(run)  # what was being written is still there
        else:
            kill_when(recipe, lambda goal=goal: logged(run) >= goal)
    assert inside >= 1, "no kill fell into a save"
    assert result(finish(recipe), 120) == result(whole, 120)
    assert not saving(run), "and nothing half-written is left"
