from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from reelwright.shapes.checker import read
from reelwright.shapes.controls import CONTROLS, nearest_training_scenes, shuffled_captions
from reelwright.shapes.renderer import render
from reelwright.shapes.scores import is_right, score
from reelwright.shapes.splits import training_scenes
from reelwright.types import Size

FPS = 8.0


def scored(rendered, control):
    spoilt = [CONTROLS[control](video, seed) for seed, video in enumerate(rendered.videos)]
    return score((p, read(v, FPS)) for p, v in zip(rendered.prompts, spoilt, strict=True))


def test_frozen_videos_score_through_still_alone(rendered):
    result = scored(rendered, "frozen")
    assert result.joint.k == 0 and result.joint.n > 200
    assert result.still.k == result.still.n > 0
    assert result.factors["shape"].share == result.factors["colour"].share == 1.0


def test_reversed_videos_move_the_other_way(rendered):
    opposite = {"left": "right", "up": "down", "growing": "shrinking", "up-left": "down-right", "up-right": "down-left"}
    opposite |= {there: here for here, there in opposite.items()} | {"rotating": "rotating", "still": "still"}
    for prompt, video in list(zip(rendered.prompts, rendered.videos, strict=True))[::8]:
        assert read(CONTROLS["reversed"](video, 0), FPS).factors.motion == opposite[prompt.stated[0].motion or ""]
    result = scored(rendered, "reversed")
    assert result.direction_error_degrees == pytest.approx(180.0, abs=1.0)


def test_shuffled_frames_have_no_motion(rendered):
    result = scored(rendered, "frame-shuffled")
    assert result.joint.share < 0.02
    assert result.factors["colour"].share == 1.0


@pytest.mark.parametrize("control", ["blank", "noise"])
def test_nothing_is_read_in_blank_and_noise(rendered, control):
    result = scored(rendered, control)
    assert result.joint.k == result.still.k == result.valid.k == 0
    assert result.abstained.share == 1.0
    assert result.direction_error_degrees is None and result.path_residual_pixels is None


def test_controls_are_seeded_and_leave_the_video_alone(rendered):
    video = rendered.videos[0]
    before = video.copy()
    for name, control in CONTROLS.items():
        assert (control(video, 1) == control(video, 1)).all(), name
        assert control(video, 1).shape == video.shape and control(video, 1).dtype == np.uint8
    for name in ("frame-shuffled", "noise"):
        assert (CONTROLS[name](video, 1) != CONTROLS[name](video, 2)).any()
    assert (video == before).all()


def test_shuffled_captions_give_chance(rendered):
    readings = [read(video, FPS) for video in rendered.videos]
    results = []
    for seed in range(8):
        shuffled = shuffled_captions(rendered.prompts, seed)
        assert sorted(p.caption for p in shuffled) == sorted(p.caption for p in rendered.prompts)
        assert all(a is not b for a, b in zip(shuffled, rendered.prompts, strict=True))
        assert shuffled == shuffled_captions(rendered.prompts, seed)
        results.append(score(zip(shuffled, readings, strict=True)))
    # By chance alone: how often two different prompts of this list state the same words.
    triples = Counter(p.stated for p in rendered.prompts if p.stated[0].motion != "still")
    n = len(rendered.prompts)
    expected = sum(k * (k - 1) for k in triples.values()) / (sum(triples.values()) * (n - 1))
    mean = sum(r.joint.k for r in results) / sum(r.joint.n for r in results)
    assert 0.3 * expected < mean < 2.5 * expected and mean < 0.05
    assert 0.2 < results[0].factors["shape"].share < 0.45
    assert 0.05 < results[0].factors["colour"].share < 0.22
    assert results[0].factors["motion"].share < 0.18


def test_one_prompt_cannot_be_shuffled(rendered):
    with pytest.raises(ValueError, match="at least 2"):
        shuffled_captions(rendered.prompts[:1], 0)


def test_retrieval_agrees_where_training_has_the_combination(rendered):
    training = training_scenes(1500, seed=0)
    found = nearest_training_scenes(rendered.prompts, training, seed=0)
    seen = {s.objects[0].factors.only(("shape", "colour", "motion")) for s in training}
    for prompt, scene in zip(rendered.prompts, found, strict=True):
        exact = scene.objects[0].factors.only(("shape", "colour", "motion")) == prompt.stated[0]
        assert exact == (prompt.stated[0] in seen)
    reading = read(render(found[0], Size(16, 64, 64), FPS), FPS)
    assert is_right(rendered.prompts[0], reading)
