"""Scenes drawn at random: the words first, then numbers that make the words true.

Only `Generator.random` of PCG64 is used, and only exactly rounded arithmetic follows it, so that a key gives the same
scene on every machine and with every version of numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from reelwright.randomness import derive_seed
from reelwright.shapes.geometry import extents
from reelwright.shapes.world import (
    DIRECTIONS,
    GROWTH,
    RADIUS,
    SIZES,
    SPEEDS,
    TRAVEL,
    TURN,
    Factors,
    MovingObject,
    Scene,
    Track,
)

T = TypeVar("T")

FRAME_MARGIN = 0.015  # nothing comes closer to the frame's edge
REGION_GAP = 0.03  # nothing starts closer than this to a line between two regions


def scene_generator(*key: int | str) -> np.random.Generator:
    """A numpy generator that depends on the key alone."""
    return np.random.Generator(np.random.PCG64(derive_seed("shapes", *key)))


def choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def sample_scene(
    shape: str, colour: str, motion: str, track: Track, rng: np.random.Generator, duration_seconds: float = 2.0
) -> Scene:
    """A scene of one object of these three words; speed, size, start and background are drawn.

    The whole motion takes `duration_seconds`: slow and quick are about the way travelled in a clip, whatever its
    length, so that every motion fits the frame.
    """
    if duration_seconds <= 0:
        raise ValueError(f"duration_seconds = {duration_seconds} must be positive")
    speed = None if motion == "still" else choose(rng, SPEEDS)
    size = choose(rng, SIZES)
    middle_radius = _uniform(rng, RADIUS[size])
    travel = (0.0, 0.0)
    growth = turn = 0.0
    if motion in DIRECTIONS and speed:
        distance = _uniform(rng, TRAVEL[speed])
        travel = (DIRECTIONS[motion][0] * distance, DIRECTIONS[motion][1] * distance)
    elif motion in ("growing", "shrinking") and speed:
        growth = _uniform(rng, GROWTH[speed]) * middle_radius * (1 if motion == "growing" else -1)
    elif motion == "rotating" and speed:
        turn = _uniform(rng, TURN[speed]) * choose(rng, (1, -1))

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
