"""Scenes drawn at random: the words first, then numbers that make the words true.

Only `Generator.random` of PCG64 is used, and only exactly rounded arithmetic follows it, so that a key gives the same
scene on every machine and with every version of numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from reelwright.randomness import derive_seed
from reelwright.shapes.outlines import extents
from reelwright.shapes.world import (
    COLOURS,
    DIRECTIONS,
    GRADED_GROWTH,
    GRADED_RADIUS,
    GRADED_TRAVEL,
    GRADED_TURN,
    SIZES,
    SPEEDS,
    Factors,
    MovingObject,
    Scene,
    Track,
)

T = TypeVar("T")

FRAME_MARGIN = 0.015  # nothing comes closer to the frame's edge
REGION_GAP = 0.03  # nothing starts closer than this to a line between two regions
PAIR_GAP = 0.07  # two objects' circumscribed circles never come closer: 4 pixels of 64
PAIR_CHECKS = 32  # times of a clip at which that is made sure of
CHANGE_AT = {  # share of the clip; late enough that a bounce never runs past where it started
    "bounces": (0.50, 0.60), "stops": (0.40, 0.60), "changes colour": (0.40, 0.60), "appears": (0.25, 0.45)
}  # fmt: skip

Triple = tuple[str, str, str]  # shape, colour, motion


def scene_generator(*key: int | str) -> np.random.Generator:
    """A numpy generator that depends on the key alone."""
    return np.random.Generator(np.random.PCG64(derive_seed("shapes", *key)))


def choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def sample_scene(
    shape: str,
    colour: str,
    motion: str,
    track: Track,
    rng: np.random.Generator,
    duration_seconds: float = 2.0,
    speed: str | None = None,
    size: str | None = None,
) -> Scene:
    """A scene of one object of these words; start and background are drawn, and speed and size where they are None.

    The whole motion takes `duration_seconds`: slow and quick are about the way travelled in a clip, whatever its
    length, so that every motion fits the frame.
    """
    if duration_seconds <= 0:
        raise ValueError(f"duration_seconds = {duration_seconds} must be positive")
    if motion != "still":
        speed = speed or choose(rng, SPEEDS)
    size = size or choose(rng, SIZES)
    middle_radius = _uniform(rng, GRADED_RADIUS[size])
    travel = (0.0, 0.0)
    growth = turn = 0.0
    if motion in DIRECTIONS and speed:
        distance = _uniform(rng, GRADED_TRAVEL[speed])
        travel = (DIRECTIONS[motion][0] * distance, DIRECTIONS[motion][1] * distance)
    elif motion in ("growing", "shrinking") and speed:
        growth = _uniform(rng, GRADED_GROWTH[speed]) * middle_radius * (1 if motion == "growing" else -1)
    elif motion == "rotating" and speed:
        turn = _uniform(rng, GRADED_TURN[speed]) * choose(rng, (1, -1))

    widest = middle_radius + abs(growth) / 2
    left, right, up, down = (reach * widest + FRAME_MARGIN for reach in extents(shape, turning=turn != 0))
    start = (_start(rng, left, right, travel[0]), _start(rng, up, down, travel[1]))
    region = f"{'top' if start[1] < 0.5 else 'bottom'} {'left' if start[0] < 0.5 else 'right'}"
    moving = MovingObject(
        factors=Factors(shape, colour, motion, speed, size, region),
        start=start,
        velocity=(travel[0] / duration_seconds, travel[1] / duration_seconds),
        radius=middle_radius - growth / 2,
        growth=growth / duration_seconds,
        angle=0.0,
        spin=turn / duration_seconds,
    )
    return Scene((moving,), choose(rng, track.backgrounds), duration_seconds)


def sample_pair(
    first: Triple, second: Triple, track: Track, rng: np.random.Generator, duration_seconds: float = 2.0
) -> Scene:
    """A scene of two objects that never touch, in the order given; what brings them together is drawn again.

    Two large objects that grow have no room beside each other, so that large is rarer here than small.
    """
    while True:
        scenes = [sample_scene(*words, track, rng, duration_seconds) for words in (first, second)]
        one, other = (scene.objects[0] for scene in scenes)
        if _are_apart(one, other, duration_seconds):
            return Scene((one, other), scenes[0].background, duration_seconds)


def _are_apart(one: MovingObject, other: MovingObject, duration_seconds: float) -> bool:
    """Whether the circles around both keep PAIR_GAP between them throughout."""
    for step in range(PAIR_CHECKS + 1):
        t = duration_seconds * step / PAIR_CHECKS
        dx, dy = (
            one.start[axis] + t * one.velocity[axis] - other.start[axis] - t * other.velocity[axis] for axis in (0, 1)
        )
        reach = sum((moving.radius + t * moving.growth) * _circumradius(moving) for moving in (one, other))
        if dx * dx + dy * dy < (reach + PAIR_GAP) * (reach + PAIR_GAP):
            return False
    return True


def _circumradius(moving: MovingObject) -> float:
    assert moving.factors.shape is not None, "a scene's object has a shape"
    return extents(moving.factors.shape, turning=True)[0]


def sample_change(
    words: Triple, change: str, track: Track, rng: np.random.Generator, duration_seconds: float = 2.0
) -> Scene:
    """A scene of one object with a change in mid-clip.

    The motion has the whole of its way before a bounce or a stop and after appearing, and goes on through a change of
    colour. A bounce is straight back.
    """
    at = _uniform(rng, CHANGE_AT[change]) * duration_seconds
    becomes = None
    if change == "changes colour":
        becomes = choose(rng, [colour for colour in COLOURS if colour != words[1]])
    lasts = {"appears": duration_seconds - at, "changes colour": duration_seconds}.get(change, at)
    scene = sample_scene(*words, track, rng, lasts)
    moving = scene.objects[0]
    changing = replace(moving, factors=replace(moving.factors, change=change, becomes=becomes), change_at=at)
    return Scene((changing,), scene.background, duration_seconds)


def _start(rng: np.random.Generator, before: float, after: float, travel: float) -> float:
    """A starting coordinate from which start and end stay `before` and `after` inside the unit interval."""
    low = before + max(0.0, -travel)
    high = 1.0 - after - max(0.0, travel)
    below = max(0.0, min(high, 0.5 - REGION_GAP) - low)
    above = max(0.0, high - max(low, 0.5 + REGION_GAP))
    assert below + above > 0, "the world's ranges leave every object a place to start"
    offset = rng.random() * (below + above)
    return low + offset if offset < below else max(low, 0.5 + REGION_GAP) + offset - below


def _uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * float(rng.random())
