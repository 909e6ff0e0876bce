from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reelwright.training.config import TrainConfig
from reelwright.training.tracker import Trackers
from reelwright.types import UsageError


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_figures_reach_tensorboard_and_nothing_else_does(tmp_path: Path) -> None:
    trackers = Trackers(TrainConfig(), tmp_path, 0, {})
    trackers.write(5, {"step": 5, "loss": 0.5, "clips": 3, "split": "train", "by_time": [1.0, 2.0]})
    trackers.write(10, {"loss": 0.25})
    trackers.close()
    assert events(tmp_path) == {"loss": [(5, 0.5), (10, 0.25)], "clips": [(5, 3.0)]}


def test_figures_past_the_step_resumed_from_are_purged(tmp_path: Path) -> None:
    first = Trackers(TrainConfig(), tmp_path, 0, {})
    for step in range(1, 7):
        first.write(step, {"loss": float(step)})
    first.close()
    second = Trackers(TrainConfig(), tmp_path, 4, {})
    second.write(5, {"loss": 50.0})
    second.close()
    assert events(tmp_path) == {"loss": [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 50.0)]}


def test_no_tracker_leaves_nothing(tmp_path: Path) -> None:
    trackers = Trackers(TrainConfig(tensorboard=False), tmp_path, 0, {})
    trackers.write(1, {"loss": 1.0})
    trackers.close()
    assert list(tmp_path.iterdir()) == []


def test_wandb_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=r"train\.wandb = 'mine': wandb is not installed; pip install .* or set"):
        Trackers(TrainConfig(tensorboard=False, wandb="mine"), tmp_path, 0, {})


def test_a_run_directory_is_one_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    logged: list[tuple[dict[str, Any], int]] = []
    run = SimpleNamespace(log=lambda figures, step: logged.append((figures, step)), finish=lambda: None)

    def init(**options: Any) -> SimpleNamespace:
        started.append(options)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    config = TrainConfig(tensorboard=False, wandb="mine")
    for folder in ("a", "a", "b"):
        trackers = Trackers(config, tmp_path / folder, 0, {"seed": 0})
        trackers.write(3, {"step": 3, "loss": 0.5, "split": "train"})
        trackers.close()
    ids = [options["id"] for options in started]
    assert ids[0] == ids[1] != ids[2] and all("/" not in one and len(one) <= 64 for one in ids)
    assert all(options["resume"] == "allow" and options["project"] == "mine" for options in started)
    assert logged == [({"loss": 0.5}, 3)] * 3
