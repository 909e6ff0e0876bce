"""Does a model repeat its training clips? Distances in the state space of the world.

A clip is a point: where each object starts and ends, how large, of which colour and shape, how far it turns, and what
changes; two objects are compared whichever way brings the clips nearer. The distance of each generated video to its
nearest training clip means little by itself, so it is compared with the same figure for fresh renders, which have seen
no training clip at all: much nearer than those is memorised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from reelwright.shapes.checker import Reading, Trajectory
from reelwright.shapes.checker_objects import SceneReading
from reelwright.shapes.colour import lab
from reelwright.shapes.scores import AnyReading, Count
from reelwright.shapes.world import CHANGES, COLOURS, SHAPES, Factors, MovingObject, Scene

LAB_SCALE = 100.0  # neighbouring palette entries are about 0.5 apart
TURN_SCALE = 180.0
SHAPE_SCALE = 0.5**0.5  # two different shapes are 1 apart
SUSPICIOUS = 0.05  # the share of fresh renders that lies below the threshold of `closer_than_fresh`


@dataclass(frozen=True, eq=False)
class Memorisation:
    distances: np.ndarray  # of each video that could be read, to its nearest training clip
    nearest: np.ndarray  # the index of that training clip
    videos: np.ndarray  # the index of each such video among the readings
    median: float
    fresh_median: float
    closer_than_fresh: Count  # videos nearer than all but 5 % of the fresh renders: 5 % is what chance gives

    @property
    def ratio(self) -> float:
        """Below 1: nearer to the training clips than fresh renders are."""
        return self.median / self.fresh_median


def memorisation(
    readings: Sequence[AnyReading], training: Sequence[Scene], fresh_readings: Sequence[AnyReading]
) -> Memorisation:
    """Compare generated videos with the training scenes, beside fresh renders of the same prompts.

    ValueError where none of the videos could be read: there is then no state to compare.
    """
    videos, generated = _read_states(readings, "readings")
    _, fresh = _read_states(fresh_readings, "fresh_readings")
    known = np.array([[_object_state(moving, scene) for moving in scene.objects] for scene in training])
    distances, nearest = _nearest(generated, known)
    fresh_distances, _ = _nearest(fresh, known)
    threshold = np.quantile(fresh_distances, SUSPICIOUS)
    return Memorisation(
        distances=distances,
        nearest=nearest,
        videos=videos,
        median=float(np.median(distances)),
        fresh_median=float(np.median(fresh_distances)),
        closer_than_fresh=Count(int((distances < threshold).sum()), len(distances)),
    )


def _read_states(readings: Sequence[AnyReading], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices, and states `n objects d`, of the readings whose objects all have a trajectory."""
    found: list[tuple[int, list[np.ndarray]]] = []
    for i, reading in enumerate(readings):
        objects = reading.objects if isinstance(reading, SceneReading) else (reading,)
        if reading.valid:
            found.append((i, [_reading_state(one, one.trajectory) for one in objects if one.trajectory is not None]))
    if not found:
        raise ValueError(f"{name}: none of {len(readings)} videos shows an object that could be followed")
    return np.array([i for i, _ in found]), np.array([state for _, state in found])


def _object_state(moving: MovingObject, scene: Scene) -> np.ndarray:
    assert moving.factors.colour is not None, "a scene's object has a colour"
    rgb = COLOURS[moving.factors.colour]
    seconds = scene.duration_seconds
    if moving.change_at is not None and moving.factors.change != "changes colour":
        seconds = seconds - moving.change_at if moving.factors.change == "appears" else moving.change_at
    return _state(
        moving.factors, rgb, moving.start, moving.velocity, moving.radius, moving.growth, moving.spin, seconds
    )


def _reading_state(reading: Reading, path: Trajectory) -> np.ndarray:
    return _state(
        reading.factors,
        path.colour,
        path.start,
        path.velocity,
        path.start_radius,
        path.growth,
        path.spin,
        path.duration_seconds,
    )


def _state(
    factors: Factors,
    rgb: tuple[float, float, float],
    start: tuple[float, float],
    velocity: tuple[float, float],
    radius: float,
    growth: float,
    spin: float,
    seconds: float,
) -> np.ndarray:
    """The object as a point; positions and radii in world units at the start and the end of its motion."""
    end = (start[0] + velocity[0] * seconds, start[1] + velocity[1] * seconds)
    kind = [SHAPE_SCALE * (factors.shape == name) for name in SHAPES]
    change = [SHAPE_SCALE * (factors.change == name) for name in CHANGES]
    colour = lab(np.array(rgb)) / LAB_SCALE
    later = lab(np.array(COLOURS[factors.becomes])) / LAB_SCALE if factors.becomes else np.zeros(3)
    turn = spin * seconds / TURN_SCALE
    return np.array([*start, *end, radius, radius + growth * seconds, *colour, turn, *kind, *change, *later])


def _nearest(points: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to and index of each point's nearest known one, both `n objects d`."""
    distances, indices = np.empty(len(points)), np.empty(len(points), dtype=int)
    orders = [known[:, list(order)] for order in permutations(range(known.shape[1]))]
    for i, point in enumerate(points):
        squared = np.min([((order - point) ** 2).sum(axis=(1, 2)) for order in orders], axis=0)
        indices[i] = squared.argmin()
        distances[i] = squared[indices[i]] ** 0.5
    return distances, indices
