"""`benchmarks/checker.py`: its table, JSON and plot, and that a broken checker is called one."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from reelwright.shapes.world import Factors

SOURCE = Path(__file__).resolve().parents[2] / "benchmarks" / "checker.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmarks_checker", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(benchmark, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["checker.py", *map(str, arguments)])
    benchmark.main()


def test_table_json_and_plot(benchmark, monkeypatch, tmp_path, capsys):
    options = ("--tracks", "s1", "d2", "--clips", 6, "--spoilt", 3)
    run(benchmark, monkeypatch, *options, "--json", tmp_path / "f.json", "--plot", tmp_path / "curves.svg")
    printed = capsys.readouterr().out
    assert "frame-shuffled" in printed and "mp4 and back" in printed and "measured on CPU" in printed
    one, named = json.loads((tmp_path / "f.json").read_text())["tracks"]
    assert (one["track"], named["track"]) == ("s1", "d2")
    joint = one["rows"]["renderer"]["joint"]
    assert (joint["value"], joint["n"]) == (1.0, 6) and joint["interval"] == pytest.approx([0.6097, 1.0], abs=1e-4)
    assert one["rows"]["blank"]["joint"]["value"] == 0.0 == named["rows"]["noise"]["joint"]["value"]
    assert one["rows"]["renderer"]["abstained"]["value"] == 0.0
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_a_checker_that_fails_its_own_renders_is_called_broken(benchmark, monkeypatch, capsys):
    read = benchmark.reader_of("d2")

    def colour_blind(video, fps):
        reading = read(video, fps)
        return type(reading)(Factors(shape=reading.factors.shape), reading.trajectory)

    monkeypatch.setattr(benchmark, "reader_of", lambda track: colour_blind)
    with pytest.raises(SystemExit) as end:
        run(benchmark, monkeypatch, "--tracks", "d2", "--clips", 3, "--spoilt", 2)
    assert end.value.code == 1 and "the checker of d2 is broken" in capsys.readouterr().err


def test_the_blur_is_a_gaussian(benchmark):
    video = np.random.default_rng(0).integers(0, 255, (2, 20, 24, 3)).astype(np.uint8)
    expected = gaussian_filter(video.astype(float), (0, 1.5, 1.5, 0), mode="nearest", truncate=4.0)
    assert np.abs(benchmark.blurred(video, 1.5).astype(float) - expected).max() <= 0.51
