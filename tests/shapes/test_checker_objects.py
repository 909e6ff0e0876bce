from __future__ import annotations

import numpy as np
import pytest
from degraded import EVERY_CONTROL, FPS, degraded, share_right

from reelwright.shapes.checker_objects import read_objects
from reelwright.shapes.controls import CONTROLS, nearest_training_scenes, shuffled_captions
from reelwright.shapes.memorisation import memorisation
from reelwright.shapes.renderer import render
from reelwright.shapes.scores import is_right, match_objects, score
from reelwright.shapes.splits import prompts, training_scenes
from reelwright.shapes.tables import splits_of
from reelwright.types import Size

SIZE = Size(16, 64, 64)


@pytest.fixture(scope="module")
def two():
    asked = [p for split in splits_of("s2") for p in prompts(split, 6, 1, "s2")]
    return asked, [render(p.scene, SIZE, FPS) for p in asked]


@pytest.fixture(scope="module")
def readings(two):
    return [read_objects(video, FPS) for video in two[1]]


def test_both_objects_are_read_right_in_every_factor_and_place(two, readings):
    for prompt, reading in zip(two[0], readings, strict=True):
        assert reading.valid and reading.abstained is None
        for one, moving in zip(match_objects(prompt, reading), prompt.scene.objects, strict=True):
            assert one.reading.factors == moving.factors
            assert one.reading.trajectory is not None
            assert one.reading.trajectory.start == pytest.approx(moving.start, abs=0.005)
            assert one.reading.trajectory.velocity == pytest.approx(moving.velocity, abs=0.005)


@pytest.mark.parametrize(("blur", "noise"), [(0.7, 4.0), (2.0, 0.0), (0.0, 16.0)])
def test_blur_and_noise(two, blur, noise):
    assert share_right(two[0][::4], two[1][::4], read_objects, lambda v: degraded(v, blur, noise)) >= 0.98


@pytest.mark.parametrize("size", [Size(16, 96, 96), Size(8, 64, 64), Size(16, 48, 80)])
def test_other_sizes(size):
    fps = size.frames / 2
    asked = prompts("in_distribution", 16, 3, "s2")
    assert all(is_right(p, read_objects(render(p.scene, size, fps), fps)) for p in asked)


def test_what_is_said_of_the_objects_may_come_in_any_order(two, readings):
    for prompt, reading in list(zip(two[0], readings, strict=True))[::5]:
        turned = type(prompt)(prompt.caption, prompt.stated[::-1], prompt.scene)
        assert is_right(prompt, reading) and is_right(turned, reading)


def test_the_swap_is_wrong_by_its_binding_alone(two, readings):
    """The same objects with their motions exchanged: each factor's values are all there, on the wrong object."""
    swapped = []
    for prompt in two[0]:
        motions = [stated.motion for stated in prompt.stated[::-1]]
        stated = tuple(type(s)(s.shape, s.colour, motion) for s, motion in zip(prompt.stated, motions, strict=True))
        swapped.append(type(prompt)(prompt.caption, stated, prompt.scene))
    result, right = (score(zip(asked, readings, strict=True)) for asked in (swapped, two[0]))
    assert result.complete is not None and result.swapped is not None and right.swapped is not None
    assert result.joint.k == 0 and result.swapped.share == result.complete.share == 1.0
    assert right.joint.share == 1.0 and right.swapped.k == 0
    assert result.factors["shape"].share == 1.0 and result.factors["motion"].share == 0.0


def test_one_object_is_not_two_and_counts_for_what_it_is(two):
    prompt = two[0][0]
    scene = prompt.scene
    alone = type(scene)(scene.objects[:1], scene.background, scene.duration_seconds)
    reading = read_objects(render(alone, SIZE, FPS), FPS)
    assert not reading.valid and reading.abstained == "there is one object, not two"
    result = score([(prompt, reading)])
    assert result.joint.k == 0 and result.abstained.k == 1
    assert {count.k / count.n for count in result.factors.values()} == {0.5}


def test_three_objects_are_not_two(two):
    from reelwright.shapes.splits import training_scene

    first = two[0][0].scene
    for index in range(300):  # a third object that stands clear of the two
        third = training_scene(index, 0)
        video, other = render(first, SIZE, FPS), render(third, SIZE, FPS)
        apart = [(clip != clip[0, 0, 0]).any(axis=3) for clip in (video, other)]
        near = np.array([np.roll(apart[1], (dy, dx), (1, 2)) for dy in (-3, 0, 3) for dx in (-3, 0, 3)]).any(axis=0)
        if not (near & apart[0]).any():
            reading = read_objects(np.maximum(video, other), FPS)
            assert not reading.valid and reading.abstained == "there are more than two objects"
            return
    raise AssertionError("no scene stands clear")


@pytest.mark.parametrize("control", EVERY_CONTROL)
def test_controls(two, control):
    """Of two objects that move differently a frozen or shuffled video never shows both."""
    result = score((p, read_objects(CONTROLS[control](v, i), FPS)) for i, (p, v) in enumerate(zip(*two, strict=True)))
    if control == "reversed":
        assert result.joint.share < 0.1, "what turns or stays is the same backwards; only pairs of these are right"
    else:
        assert result.joint.k == 0 and result.joint.n == len(two[0])
    if control in ("blank", "noise"):
        assert result.abstained.share == 1.0 and result.valid.k == 0


def test_shuffled_captions_give_chance(two, readings):
    assert score(zip(shuffled_captions(two[0], 0), readings, strict=True)).joint.share < 0.1


def test_retrieval_and_memorisation_take_the_objects_whichever_way_fits():
    training = training_scenes(60, 0, "s2")
    asked = prompts("in_distribution", 10, 1, "s2")
    turned = [type(s)(s.objects[::-1], s.background, s.duration_seconds) for s in training]
    assert [s.objects[::-1] for s in nearest_training_scenes(asked, turned, 0)] == [
        s.objects for s in nearest_training_scenes(asked, training, 0)
    ]
    copies = [read_objects(render(scene, SIZE, FPS), FPS) for scene in training[:10]]
    fresh = [read_objects(render(p.scene, SIZE, FPS), FPS) for p in asked]
    found = memorisation(copies, turned, fresh)
    assert found.ratio < 0.35 and (found.nearest == range(10)).all()


def test_bad_videos_are_refused():
    with pytest.raises(ValueError, match="checker"):
        read_objects(np.zeros((3, 32, 32, 3), dtype=np.uint8), FPS)
