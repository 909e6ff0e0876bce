"""The benchmark of coverage at toy size: both splits of every share, and what is measured is not measured again."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "coverage.py"


@pytest.mark.full
def test_it_goes_through_every_share_and_goes_on_where_it_was(tmp_path, write_recipe, monkeypatch, capfd):
    recipe = write_recipe("train.steps=2", "train.save_every=2")
    words = ["--recipe", recipe, "--shares", 0.1, 0.5, "--clips", 12, "--prompts", 4, "--out", tmp_path / "out"]

    def run(*more: object) -> str:
        monkeypatch.setattr(sys, "argv", ["coverage.py", *map(str, [*words, *more])])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capfd.readouterr().out

    printed = run("--json", tmp_path / "f.json", "--plot", tmp_path / "f.svg")
    points = json.loads((tmp_path / "f.json").read_text())
    assert [point["share"] for point in points] == [0.1, 0.5]
    for point in points:
        assert point["covered"]["n"] + point["uncovered"]["n"] >= 6 and point["seconds"] > 0
    clips = [json.loads((tmp_path / "out" / share / "shapes" / "scenes.json").read_text()) for share in ("0.1", "0.5")]
    assert clips[0] != clips[1] and "10%" in printed and "50%" in printed
    assert "<svg" in (tmp_path / "f.svg").read_text()
    assert "$ reelwright" in printed and "$ reelwright" not in run()
