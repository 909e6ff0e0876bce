"""Does a model repeat its training clips? Distances in the state space of the world.

A clip is a point: where the object starts and ends, how large, of which colour and shape, and how far it turns. The
distance of each generated video to its nearest training clip means little by itself, so it is compared with the same
figure for fresh renders, which have seen no training clip at all: much nearer than those is memorised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reelwright.shapes.checker import Reading, Trajectory
from reelwright.shapes.colour import lab
from reelwright.shapes.scores import Count
from reelwright.shapes.world import COLOURS, SHAPES, Scene

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
    readings: Sequence[Reading], training: Sequence[Scene], fresh_readings: Sequence[Reading]
) -> Memorisation:
    """Compare generated videos with the training scenes, beside fresh renders of the same prompts.

    ValueError where none of the videos could be read: there is then no state to compare.
    """
    videos, generated = _read_states(readings, "readings")
    _, fresh = _read_states(fresh_readings, "fresh_readings")
    known = np.array([_scene_state(scene) for scene in training])
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


def _read_states(readings: Sequence[Reading], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices and states of the readings that have a trajectory."""
    found = [(i, _reading_state(r, r.trajectory)) for i, r in enumerate(readings) if r.trajectory is not None]
    if not found:
        raise ValueError(f"{name}: none of {len(readings)} videos shows an object that could be followed")
    return np.array([i for i, _ in found]), np.array([state for _, state in found])


def _scene_state(scene: Scene) -> np.ndarray:
    moving, seconds = scene.objects[0], scene.duration_seconds
    assert moving.factors.colour is not None, "a scene's object has a colour"
    rgb = COLOURS[moving.factors.colour]
    return _state(
        moving.factors.shape, rgb, moving.start, moving.velocity, moving.radius, moving.growth, moving.spin, seconds
    )


def _reading_state(reading: Reading, path: Trajectory) -> np.ndarray:
    return _state(
        reading.factors.shape,
        path.colour,
        path.start,
        path.velocity,
        path.start_radius,
        path.growth,
        path.spin,
        path.duration_seconds,
    )


def _state(
    shape: str | None,
    rgb: tuple[float, float, float],
    start: tuple[float, float],
    velocity: tuple[float, float],
    radius: float,
    growth: float,
    spin: float,
    seconds: float,
) -> np.ndarray:
    """The clip as a point; positions and radii in world units at the clip's start and end."""
    end = (start[0] + velocity[0] * seconds, start[1] + velocity[1] * seconds)
    kind = [SHAPE_SCALE * (shape == name) for name in SHAPES]
    colour = lab(np.array(rgb)) / LAB_SCALE
    return np.array([*start, *end, radius, radius + growth * seconds, *colour, spin * seconds / TURN_SCALE, *kind])


def _nearest(points: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to and index of each point's nearest known one."""
    distances, indices = np.empty(len(points)), np.empty(len(points), dtype=int)
    for i, point in enumerate(points):
        squared = ((known - point) ** 2).sum(axis=1)
        indices[i] = squared.argmin()
        distances[i] = squared[indices[i]] ** 0.5
    return distances, indices
