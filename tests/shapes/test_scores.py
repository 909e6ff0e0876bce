from __future__ import annotations

import math

import pytest

from reelwright.shapes.checker import Reading, read
from reelwright.shapes.checker_objects import SceneReading
from reelwright.shapes.memorisation import memorisation
from reelwright.shapes.renderer import render
from reelwright.shapes.scores import Count, confusions, score, wrong_factors
from reelwright.shapes.splits import prompts, training_scenes
from reelwright.shapes.world import Factors, MovingObject, Prompt, Scene
from reelwright.types import Size

SIZE, FPS = Size(16, 64, 64), 8.0


def asked(shape, colour, motion, region="top left"):
    factors = Factors(shape, colour, motion, None, "small", region)
    moving = MovingObject(factors, (0.3, 0.3), (0.0, 0.0), 0.1, 0.0, 0.0, 0.0)
    return Prompt("", (factors.only(("shape", "colour", "motion")),), Scene((moving,), "charcoal", 2.0))


def answered(shape, colour, motion, region="top left"):
    return Reading(Factors(shape, colour, motion, None, "small", region), None)


def test_scores_by_hand():
    red, blue = asked("circle", "red", "left"), asked("square", "blue", "up", region="bottom left")
    still = asked("square", "red", "still")
    result = score(
        [
            (red, answered("circle", "red", "left")),
            (red, answered("circle", "blue", "left")),
            (blue, answered("square", "blue", None)),
            (blue, answered("circle", "blue", "up")),
            (still, answered("square", "red", "still")),
        ]
    )
    assert result.joint == Count(1, 4) and result.still == Count(1, 1)
    assert result.factors == {"shape": Count(3, 4), "colour": Count(3, 4), "motion": Count(3, 4)}
    assert result.binding_deficit == pytest.approx(0.75**3 - 0.25)
    assert result.abstained == Count(1, 5)
    # The renderer's regions are split 3:2 and what was read is all one; sizes never vary, so nothing is said of them.
    assert result.diversity == {"region": 0.0}


def test_no_videos_give_no_shares():
    result = score([])
    assert math.isnan(result.joint.share) and result.binding_deficit is None and result.diversity == {}


def test_confusions_by_hand():
    red, still = asked("circle", "red", "left"), asked("square", "red", "still")
    pairs = [(red, answered("circle", "blue", None)), (red, answered("circle", "red", "left")),
             (still, answered("square", "red", "still"))]  # fmt: skip
    assert confusions(pairs) == {
        "shape": {("circle", "circle"): 2, ("square", "square"): 1},
        "colour": {("red", "blue"): 1, ("red", "red"): 2},
        "motion": {("left", None): 1, ("left", "left"): 1, ("still", "still"): 1},
    }
    assert [wrong_factors(*pair) for pair in pairs] == [2, 0, 0]


def test_two_objects_by_hand():
    """One video with everything in its place, one with the motions exchanged, one with an object short."""
    one, other = (asked(*words).scene.objects[0] for words in (("circle", "red", "left"), ("square", "blue", "up")))
    stated = tuple(moving.factors.only(("shape", "colour", "motion")) for moving in (one, other))
    prompt = Prompt("", stated, Scene((one, other), "charcoal", 2.0))
    right = SceneReading((answered("square", "blue", "up"), answered("circle", "red", "left")))
    exchanged = SceneReading((answered("square", "blue", "left"), answered("circle", "red", "up")))
    short = SceneReading((answered("square", "blue", "up"),), ("there is one object, not two",))
    result = score([(prompt, right), (prompt, exchanged), (prompt, short)])
    assert result.joint == Count(1, 3) and result.complete == Count(2, 3) and result.swapped == Count(1, 3)
    assert result.factors == {"shape": Count(5, 6), "colour": Count(5, 6), "motion": Count(3, 6)}
    assert result.binding_deficit == pytest.approx((5 / 6 * 5 / 6 * 1 / 2) ** 2 - 1 / 3)
    assert result.abstained == Count(1, 3)
    assert [wrong_factors(prompt, reading) for reading in (right, exchanged, short)] == [0, 2, 3]


def test_diversity_of_perfect_renders_is_one(rendered):
    result = score((p, read(v, FPS)) for p, v in list(zip(rendered.prompts, rendered.videos, strict=True))[::2])
    assert result.diversity == pytest.approx({"speed": 1.0, "size": 1.0, "region": 1.0}, abs=1e-6)
    assert result.binding_deficit == pytest.approx(0.0)


def test_copies_of_training_clips_are_called_memorised():
    training = training_scenes(400, seed=0)
    fresh = [read(render(p.scene, SIZE, FPS), FPS) for p in prompts("in_distribution", 60, seed=1)]
    other = [read(render(p.scene, SIZE, FPS), FPS) for p in prompts("in_distribution", 60, seed=2)]
    copies = [read(render(scene, SIZE, FPS), FPS) for scene in training[:60]]

    copied = memorisation(copies, training, fresh)
    assert copied.ratio < 0.35 and copied.closer_than_fresh.share > 0.9
    assert (copied.nearest == range(60)).mean() > 0.95
    honest = memorisation(other, training, fresh)
    assert 0.8 < honest.ratio < 1.25 and honest.closer_than_fresh.share < 0.2


def test_unread_videos_are_left_out_and_none_at_all_is_an_error():
    training = training_scenes(20, seed=0)
    fresh = [read(render(scene, SIZE, FPS), FPS) for scene in training_scenes(4, seed=1)]
    unread = Reading(Factors(), None, ("no object stands out from the background",))
    assert memorisation([unread, fresh[0]], training, fresh).videos.tolist() == [1]
    with pytest.raises(ValueError, match="none of 1 videos"):
        memorisation([unread], training, fresh)
