from __future__ import annotations

import math

import pytest

from reelwright.shapes.checker import Reading, read
from reelwright.shapes.memorisation import memorisation
from reelwright.shapes.renderer import render
from reelwright.shapes.scores import Count, score
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
