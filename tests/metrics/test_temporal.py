"""Frame-to-frame figures on videos whose motion is known, and on those that must not win."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from reelwright.metrics import temporal
from reelwright.metrics.temporal import feature_consistency, luma_consistency, measure_motion, ssim
from reelwright.shapes.controls import CONTROLS
from reelwright.shapes.renderer import render
from reelwright.shapes.splits import prompts
from reelwright.shapes.world import DIRECTIONS
from reelwright.types import Size

SIZE, FPS = Size(8, 64, 64), 8.0


@pytest.fixture(scope="module")
def moving() -> list[tuple[np.ndarray, float]]:
    """Rendered shapes that cross the frame, with their true speed in pixels a frame at 256."""
    chosen = [p for p in prompts("in_distribution", 30, 0) if p.stated[0].motion in DIRECTIONS][:5]
    speeds = [float(np.hypot(*p.scene.objects[0].velocity)) / FPS * 256 for p in chosen]
    return [(render(p.scene, SIZE, FPS), speed) for p, speed in zip(chosen, speeds, strict=True)]


def test_the_dynamic_degree_is_the_speed(moving):
    measured = [measure_motion(video) for video, _ in moving]
    ratios = [motion.dynamic_degree / speed for motion, (_, speed) in zip(measured, moving, strict=True)]
    assert all(0.6 < ratio < 1.6 for ratio in ratios) and 0.85 < np.mean(ratios) < 1.3
    assert all(motion.moves for motion in measured)
    assert all((motion.unexplained or 1) < 0.15 for motion in measured), "motion explains what changes"


def test_the_dynamic_degree_does_not_depend_on_the_size():
    prompt = next(p for p in prompts("in_distribution", 30, 0) if p.stated[0].motion in DIRECTIONS)
    small, large = (measure_motion(render(prompt.scene, Size(4, side, side), FPS)) for side in (64, 128))
    assert small.dynamic_degree == pytest.approx(large.dynamic_degree, rel=0.25)


def test_a_frozen_clip_wins_all_but_the_dynamic_degree(moving):
    for video, _ in moving[:2]:
        frozen = measure_motion(CONTROLS["frozen"](video, 0))
        assert frozen.dynamic_degree < 1e-4 and not frozen.moves
        assert frozen.warping_error == pytest.approx(0, abs=1e-9) and frozen.unexplained is None
        assert luma_consistency(CONTROLS["frozen"](video, 0)) == pytest.approx(1)


def test_noise_wins_nothing_but_the_dynamic_degree(moving):
    for video, _ in moving[:2]:
        real, noise = measure_motion(video), measure_motion(CONTROLS["noise"](video, 0))
        assert noise.warping_error is not None and noise.unexplained is not None
        assert real.warping_error is not None and real.unexplained is not None
        assert noise.warping_error > 100 * real.warping_error and noise.unexplained > 0.5 > real.unexplained
        assert luma_consistency(CONTROLS["noise"](video, 0)) < 0.1 < luma_consistency(video)


def test_a_sudden_cut_is_not_explained_by_motion(moving):
    video = moving[0][0].copy()
    smooth = measure_motion(video)
    video[4:] = 255 - video[4:]
    cut = measure_motion(video)
    assert smooth.unexplained is not None and smooth.warping_error is not None
    assert cut.warping_error is None or cut.warping_error > 10 * smooth.warping_error


def test_large_frames_are_shrunk_first(moving, monkeypatch):
    video = np.repeat(np.repeat(moving[0][0][:3], 2, axis=1), 2, axis=2)
    monkeypatch.setattr(temporal, "LARGEST_SIDE", 64)
    assert measure_motion(video).dynamic_degree == pytest.approx(
        measure_motion(moving[0][0][:3]).dynamic_degree, rel=1e-3
    )


def test_pairs_in_pieces_are_the_same(moving, monkeypatch):
    whole = measure_motion(moving[1][0])
    monkeypatch.setattr(temporal, "PAIRS_AT_ONCE", 3)
    pieces = measure_motion(moving[1][0])
    assert pieces.dynamic_degree == pytest.approx(whole.dynamic_degree, rel=1e-4)
    assert pieces.warping_error == pytest.approx(whole.warping_error, rel=1e-3)


def test_ssim_is_the_published_formula():
    """Against scipy's Gaussian windows in float64."""
    random = np.random.default_rng(0)
    a, b = random.random((2, 20, 24))

    def mean(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, mode="nearest", radius=4)

    mean_a, mean_b = mean(a), mean(b)
    va, vb, cov = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    expected = (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4) / ((mean_a**2 + mean_b**2 + 1e-4) * (va + vb + 9e-4))
    measured = ssim(torch.from_numpy(a)[None], torch.from_numpy(b)[None])
    assert float(measured) == pytest.approx(expected.mean(), abs=1e-10)
    assert float(ssim(torch.from_numpy(a)[None], torch.from_numpy(a)[None])) == pytest.approx(1)


def test_consistency_of_features():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    assert feature_consistency(features) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least two"):
        feature_consistency(features[:1])


@pytest.mark.parametrize(
    "video",
    [np.zeros((1, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 3), np.float32), np.zeros((4, 8, 8), np.uint8)],
)
def test_other_arrays_are_refused(video):
    with pytest.raises(ValueError, match="uint8 'f h w 3' of at least two frames"):
        measure_motion(video)
