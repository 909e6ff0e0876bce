from __future__ import annotations

import numpy as np
import pytest
from degraded import EVERY_CONTROL, FPS, degraded, share_right

from reelwright.shapes.checker_changes import NO_CHANGE, read_change
from reelwright.shapes.controls import CONTROLS
from reelwright.shapes.memorisation import memorisation
from reelwright.shapes.renderer import render
from reelwright.shapes.scores import is_right, score
from reelwright.shapes.splits import prompts, training_scenes
from reelwright.shapes.tables import splits_of
from reelwright.shapes.world import CHANGES
from reelwright.types import Size

SIZE = Size(16, 64, 64)


@pytest.fixture(scope="module")
def changing():
    asked = [p for split in splits_of("s3") for p in prompts(split, 12, 1, "s3")]
    return asked, [render(p.scene, SIZE, FPS) for p in asked]


def test_every_factor_is_read_right(changing):
    for prompt, video in zip(*changing, strict=True):
        reading = read_change(video, FPS)
        factors = prompt.scene.objects[0].factors
        assert reading.factors == factors, (prompt.caption, reading.reasons)
        assert reading.reasons == ()
        assert reading.trajectory is not None
        assert reading.trajectory.path_residual * 64 < 0.2
    assert {p.stated[0].change for p in changing[0]} == set(CHANGES)


@pytest.mark.parametrize(("blur", "noise"), [(0.7, 4.0), (2.0, 0.0), (0.0, 8.0)])
def test_blur_and_noise(changing, blur, noise):
    assert share_right(changing[0][::2], changing[1][::2], read_change, lambda v: degraded(v, blur, noise)) >= 0.98


@pytest.mark.parametrize("size", [Size(16, 96, 96), Size(12, 64, 64), Size(16, 48, 80), Size(32, 64, 64)])
def test_other_sizes(size):
    fps = size.frames / 2
    asked = prompts("in_distribution", 24, 3, "s3")
    assert np.mean([is_right(p, read_change(render(p.scene, size, fps), fps)) for p in asked]) >= 0.95


@pytest.mark.full
def test_where_nothing_changes_no_change_is_read(rendered):
    """One object of the first track, every motion: its words are read as they are, and that nothing changes."""
    for prompt, video in list(zip(rendered.prompts, rendered.videos, strict=True))[::3]:
        reading = read_change(video, FPS)
        assert is_right(prompt, reading) and reading.factors.change is None and reading.reasons == (NO_CHANGE,)
        noisy = read_change(degraded(video, noise=8.0), FPS)
        assert noisy.factors.change is None


@pytest.mark.parametrize("control", EVERY_CONTROL)
def test_controls(changing, control):
    asked, videos = changing
    result = score(
        (p, read_change(CONTROLS[control](v, i), FPS)) for i, (p, v) in enumerate(zip(asked, videos, strict=True))
    )
    assert result.still.n == 0, "nothing of this track is still: frozen videos have nothing to profit from"
    if control == "reversed":
        bounces = sum(p.stated[0].change == "bounces" for p in asked)
        assert result.joint.k <= bounces + sum(p.stated[0].motion == "rotating" for p in asked)
    else:
        assert result.joint.k == 0
    if control in ("blank", "noise"):
        assert result.abstained.share == 1.0


def test_flicker_and_a_detour_are_no_change(changing):
    asked, videos = changing
    index = next(i for i, p in enumerate(asked) if p.stated[0].change == "changes colour")
    video = videos[index]
    flicker = video.copy()
    flicker[1::2] = video[::-1][1::2]
    assert read_change(flicker, FPS).factors.change is None
    index = next(i for i, p in enumerate(asked) if p.stated[0].change == "stops" and p.stated[0].motion == "left")
    corner = np.concatenate([videos[index][:8], [np.roll(videos[index][8], k, axis=0) for k in range(8)]])
    assert read_change(corner, FPS).factors.change is None, "left, then down, is none of the words"


def test_what_goes_away_or_blinks_is_not_what_appears(changing):
    asked, videos = changing
    index = next(i for i, p in enumerate(asked) if p.stated[0].change == "appears")
    gone = videos[index][::-1].copy()
    assert read_change(gone, FPS).abstained == "the object is not there throughout"
    blinking = videos[index].copy()
    blinking[10:12] = blinking[0]
    assert not is_right(asked[index], read_change(blinking, FPS))


def test_copies_of_training_clips_are_called_memorised():
    training = training_scenes(80, 0, "s3")
    copies = [read_change(render(scene, SIZE, FPS), FPS) for scene in training[:20]]
    fresh = [read_change(render(p.scene, SIZE, FPS), FPS) for p in prompts("in_distribution", 20, 1, "s3")]
    found = memorisation(copies, training, fresh)
    assert found.ratio < 0.35 and (found.nearest == range(20)).mean() >= 0.95


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="at least 8 frames"):
        read_change(np.zeros((7, 32, 32, 3), dtype=np.uint8), FPS)
