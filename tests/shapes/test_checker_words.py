from __future__ import annotations

import numpy as np
import pytest
from degraded import FPS, degraded, share_right

from reelwright.shapes.checker import read
from reelwright.shapes.checker_words import read_graded, read_with_lines
from reelwright.shapes.files import training_prompts
from reelwright.shapes.renderer import render
from reelwright.shapes.scores import is_right
from reelwright.shapes.splits import prompts
from reelwright.shapes.tables import splits_of
from reelwright.types import Size

SIZE = Size(16, 64, 64)


@pytest.fixture(scope="module")
def graded():
    asked = [p for split in splits_of("graded") for p in prompts(split, 40, 1, "graded")]
    return asked, [render(p.scene, SIZE, FPS) for p in asked]


@pytest.fixture(scope="module")
def named():
    asked = training_prompts(30, 0, "d2")
    return asked, [render(p.scene, SIZE, FPS) for p in asked]


def test_graded_words_are_read_right(graded):
    for prompt, video in zip(*graded, strict=True):
        reading = read_graded(video, FPS)
        assert reading.factors == prompt.scene.objects[0].factors, prompt.caption


def test_graded_words_under_what_an_mp4_does(graded):
    assert share_right(graded[0][::3], graded[1][::3], read_graded, lambda v: degraded(v, 0.7, 4.0)) >= 0.97


def test_the_usual_words_are_the_usual_readings(rendered):
    for video in rendered.videos[::8]:
        assert read_graded(video, FPS).factors == read(video, FPS).factors


def test_the_three_named_clips_are_told_right_from_wrong(named):
    asked, videos = named
    assert share_right(asked, videos, read_with_lines) == 1.0
    assert share_right(asked, videos, read_with_lines, lambda v: degraded(v, 1.5)) == 1.0
    assert share_right(asked, videos, read_with_lines, lambda v: degraded(v, noise=16.0)) == 1.0
    readings = [read_with_lines(video, FPS) for video in videos[:3]]
    right = [[is_right(prompt, reading) for reading in readings] for prompt in asked[:3]]
    assert np.array_equal(right, np.eye(3, dtype=bool))
    frozen = np.repeat(videos[2][:1], 16, axis=0)
    assert read_with_lines(frozen, FPS).factors.shape == "line" and not is_right(asked[2], read_with_lines(frozen, FPS))


def test_no_other_shape_is_a_line(rendered):
    for prompt, video in list(zip(rendered.prompts, rendered.videos, strict=True))[::4]:
        assert read_with_lines(video, FPS).factors.shape == prompt.stated[0].shape
    for prompt in prompts("in_distribution", 30, 2, "s1-hard"):
        video = render(prompt.scene, SIZE, FPS)
        assert read_with_lines(video, FPS).factors.shape == prompt.stated[0].shape


def test_a_long_hollow_frame_is_no_line():
    y, x = np.mgrid[:64, :64] - 31.5
    outer = (np.abs(x) < 24) & (np.abs(y) < 7)
    frame = outer & ~((np.abs(x) < 20) & (np.abs(y) < 3))
    for mask, shape in ((outer & (np.abs(y) < 4), "line"), (frame, None)):
        video = np.full((16, 64, 64, 3), 38, dtype=np.uint8)
        video[:, mask] = (205, 25, 45)
        assert read_with_lines(video, FPS).factors.shape == shape
