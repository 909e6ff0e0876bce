"""Cuts are found where the pictures change at once, at the timestamps that windows use."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from made_videos import write_video

from reelwright.data import scenes
from reelwright.data.decode import BadVideo, probe
from reelwright.data.sandbox import Decoders
from reelwright.data.scenes import find_cuts
from reelwright.types import UsageError


def _scene(frames: int, seed: int, drift: int = 2) -> np.ndarray:
    """Blocks of colour that move slowly."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 12, 3))
    picture = np.kron(blocks, np.ones((16, 16, 1))).astype(np.uint8)
    return np.stack([np.roll(picture, drift * k, axis=1)[:64, :96] for k in range(frames)])


def test_cuts_are_at_the_timestamps_of_new_scenes(tmp_path: Path) -> None:
    """A variable frame rate and a late first timestamp, so that counting frames would be wrong."""
    frames = np.concatenate([_scene(20, 1), _scene(3, 2), _scene(25, 3)])
    gaps = np.random.default_rng(0).integers(1, 9, len(frames))
    pts = (500 + np.cumsum(gaps)).tolist()
    path = write_video(tmp_path / "a.mkv", frames, pts=pts, time_base=Fraction(1, 100))
    expected = [(pts[k] - pts[0]) / 100 for k in (20, 23)]
    assert find_cuts(path, probe(path), 27.0) == pytest.approx(expected)
    with Decoders(1) as decoders:
        assert decoders.call(find_cuts, path, probe(path), 27.0) == pytest.approx(expected)


def test_motion_is_no_cut_and_the_threshold_counts(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", _scene(30, 1))
    assert find_cuts(path, probe(path), 27.0) == ()
    assert len(find_cuts(path, probe(path), 1.0)) == 29


def test_a_file_that_does_not_decode_says_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", _scene(30, 1))
    info = probe(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(BadVideo):
        find_cuts(path, info, 27.0)


def test_without_the_extra_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes.check_extra()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"data.scene_cuts needs scenedetect.*pip install 'reelwright\[scenes\]'"):
        scenes.check_extra()
