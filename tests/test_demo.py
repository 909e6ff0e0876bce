"""`demo`: the recipe it shows is the one beside the README, and its chain is the commands a user types."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from reelwright import demo
from reelwright.recipe import Recipe
from reelwright.types import UserError

PUBLISHED = Path(__file__).parents[1] / "recipes" / "shapes-cpu.yaml"
# How long the demo trains and how often it looks is its own; all that decides what is learned is not.
OWN = {"steps", "save_every", "evaluate_every", "sample_every"}


def test_the_demo_trains_by_the_published_recipe(tmp_path):
    demo.write_recipe(tmp_path / "recipe.yaml", tmp_path / "shapes", tmp_path / "run", tmp_path / "cache", 7)
    ours, published = (Recipe.load(path).plain() for path in (tmp_path / "recipe.yaml", PUBLISHED))
    for group in ("text", "model", "objective", "sampling", "seed"):
        assert ours[group] == published[group], group
    assert {**ours["codec"], "steps": None} == {**published["codec"], "steps": None}
    assert {**ours["data"], "path": None} == {**published["data"], "path": None}
    assert ours["train"]["steps"] == 7
    assert {k: v for k, v in ours["train"].items() if k not in OWN} == {
        k: v for k, v in published["train"].items() if k not in OWN
    }


def test_a_command_that_fails_stops_the_demo(tmp_path, monkeypatch):
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "mine.txt").write_text("not a shapes collection")
    with pytest.raises(UserError, match=r"`reelwright shapes` ended with exit code 2"):
        demo.run_demo(tmp_path, steps=1)
    assert [p.name for p in (tmp_path / "shapes").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("code", "ends"), [(130, SystemExit), (0, KeyboardInterrupt)])
def test_ctrl_c_is_for_the_command_at_work_and_told_once(tmp_path, monkeypatch, capfd, code, ends):
    """A command that is told of it ends by itself and says what is kept; one that had just ended leaves it to us."""

    class Command:
        def __init__(self, *_: object) -> None:
            assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []), "lost while Python starts"

        def wait(self) -> int:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # what the command does until it has ended
            return code

    monkeypatch.setattr(demo.subprocess, "Popen", Command)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ends) as end:
        demo.run_demo(tmp_path)
    assert code == 0 or end.value.code == 130
    assert signal.getsignal(signal.SIGINT) is before and capfd.readouterr().err == ""


def score(row: str, value: float, metric: str = "joint accuracy") -> dict[str, Any]:
    return {"row": row, "split": "in_distribution", "metric": metric, "value": value, "low": 0.0, "high": 1.0, "n": 8}


def test_the_summary_goes_from_before_to_after(capsys):
    demo._summary(
        [score("model", 0.75), score("renderer", 1.0), score("untrained model", 0.0),
         score("model, shuffled captions", 0.1), score("model, blank", 0.0), score("model", 0.5, "shape accuracy")]
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()[4:]
    assert [line.split("  ")[0] for line in lines] == [
        "before training", "after training", "chance (captions shuffled)", "the renderer itself"
    ]  # fmt: skip
    assert "75.0% [0.0%, 100.0%]" in lines[1]


@pytest.mark.full
def test_the_whole_demo(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(demo, "CLIPS", 40)
    monkeypatch.setattr(demo, "SCORED_PROMPTS", 2)
    monkeypatch.setattr(demo, "CODEC_STEPS", 3)
    demo.run_demo(tmp_path, steps=2)
    out = capfd.readouterr().out
    for command in ("shapes", "inspect", "prepare", "train", "generate", "evaluate"):
        assert f"$ reelwright {command} " in out
    assert "before training" in out and f"report: {tmp_path / 'run' / 'report.html'}" in out
    assert (tmp_path / "run" / "report.html").is_file() and (tmp_path / "inspection.html").is_file()
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 3
    assert json.loads((tmp_path / "scores.json").read_text())["scores"]
