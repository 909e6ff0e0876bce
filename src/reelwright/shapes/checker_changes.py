"""The checker for a change in mid-clip: the clip is cut where it changes, and its parts are read by `checker.read`.

Appearing = nothing in the first frames, an object in all later ones. A change of colour = the best cut of the frames'
colours into two that are far apart; both parts' mattes are then painted in one colour and read as one clip. A bounce or
a stop = the best cut of place, size and angle into two straight lines, where these fit much better than one.

FROZEN with its own hash, like `checker.py`, whose readings this file leaves as they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reelwright.shapes.checker import (
    MIN_GROWTH,
    MIN_PERSISTENCE,
    MIN_TRAVEL,
    MIN_TURN,
    Reading,
    Trajectory,
    nearest_colour,
    read,
)
from reelwright.shapes.checker_background import distance_from_border
from reelwright.shapes.checker_matte import MIN_AREA, MIN_CONTRAST, Unreadable, extract, largest_components
from reelwright.shapes.colour import lab
from reelwright.shapes.world import DIRECTIONS

SHORTEST_PART = 4  # frames, what `read` needs
FEWEST_ABSENT = 2  # frames before an object that appears
MIN_COLOUR_CHANGE = 30.0  # L*a*b*; two palette entries are at least 45 apart
MAX_LEFT_OVER = 0.4  # of the squared distance from one line: what two lines may leave
MIN_BEND = 0.08  # r.m.s. distance from one line, in the least motions that count
NO_CHANGE = "nothing changes"

OPPOSITE = {
    "left": "right", "up": "down", "up-left": "down-right", "up-right": "down-left",
    "right": "left", "down": "up", "down-right": "up-left", "down-left": "up-right",
}  # fmt: skip
assert OPPOSITE.keys() == DIRECTIONS.keys()


def read_change(video: np.ndarray, fps: float) -> Reading:
    """Read a uint8 `f h w c` video of one object with a change.

    Motion, speed, size, region and trajectory are those of the part before a bounce or stop, or after appearing. Where
    nothing changes they are those of the whole clip, and a reason says so. Errors are those of `checker.read`; besides,
    ValueError for less than 8 frames.
    """
    whole = read(video, fps)
    if len(video) < 2 * SHORTEST_PART:
        raise ValueError(f"video of {video.shape}: a change needs at least {2 * SHORTEST_PART} frames to be seen")
    appears = _appears_at(video)
    if appears is not None:
        part = read(video[appears:], fps)
        return replace(part, factors=replace(part.factors, change="appears"))
    coloured = _read_colour_change(video, fps)
    if coloured is not None:
        return coloured
    if whole.trajectory is None:
        return whole
    cut = _bend(whole.trajectory)
    if cut is not None:
        before, after = read(video[:cut], fps), read(video[cut:], fps)
        change = _change_of(before.factors.motion, after.factors.motion)
        if change is not None:
            # shape and colour from all frames, the rest from the part that moves
            factors = replace(before.factors, shape=whole.factors.shape, colour=whole.factors.colour, change=change)
            reasons = tuple(r for r in whole.reasons if r not in _ABOUT_MOTION)
            return Reading(factors, before.trajectory, reasons)
    return replace(whole, reasons=(*whole.reasons, NO_CHANGE))


_ABOUT_MOTION = (
    "the path is not a straight line", "the size changes unevenly", "the angle changes unevenly", "two motions at once"
)  # fmt: skip


def _change_of(before: str | None, after: str | None) -> str | None:
    if before is None or before == "still":
        return None
    if OPPOSITE.get(before) == after:
        return "bounces"
    return "stops" if after == "still" else None


def _appears_at(video: np.ndarray) -> int | None:
    """The frame from which there is an object; None where that is the first, or where it does not stay."""
    side = min(video.shape[1:3])
    present = largest_components(distance_from_border(video) > MIN_CONTRAST).main_area >= MIN_AREA * side * side
    if not present.any():
        return None
    first = int(present.argmax())
    if first < FEWEST_ABSENT or len(video) - first < SHORTEST_PART:
        return None
    return first if present[first:].mean() >= MIN_PERSISTENCE else None


def _read_colour_change(video: np.ndarray, fps: float) -> Reading | None:
    """The reading of a clip whose object takes another colour; None where it does not."""
    colours = _frame_colours(video)
    if colours is None:
        return None
    cut = _best_cut(colours, degree=0)
    before, after = np.median(colours[:cut], axis=0), np.median(colours[cut:], axis=0)
    if np.linalg.norm(before - after) < MIN_COLOUR_CHANGE:
        return None
    is_first = np.linalg.norm(colours - before, axis=1) < np.linalg.norm(colours - after, axis=1)
    if (is_first == (np.arange(len(colours)) < cut)).mean() < MIN_PERSISTENCE:
        return None  # it flickers
    try:
        parts = [extract(part) for part in (video[:cut], video[cut:])]
    except Unreadable:
        return None
    (first, first_distance), (second, _) = (nearest_colour(part.colour) for part in parts)
    if first == second:
        return None
    alpha = np.concatenate([part.alpha for part in parts])
    painted = np.repeat(np.rint(255 * alpha)[..., None], 3, axis=3).astype(np.uint8)
    reading = read(painted, fps)
    if reading.trajectory is None:
        return reading
    colour = parts[0].colour
    trajectory = replace(reading.trajectory, colour=(float(colour[0]), float(colour[1]), float(colour[2])))
    factors = replace(reading.factors, colour=first, change="changes colour", becomes=second)
    return Reading(factors, trajectory, reading.reasons)


def _frame_colours(video: np.ndarray) -> np.ndarray | None:
    """L*a*b* colour of the largest body of every frame, `f 3`, without its soft edge; None where a frame has none."""
    distance = distance_from_border(video)
    bodies = largest_components(distance > MIN_CONTRAST).main
    if not bodies.any(axis=(1, 2)).all():
        return None
    colours = []
    for frame, far, body in zip(video, distance, bodies, strict=True):
        inside = body & (far >= np.median(far[body]))
        colours.append(np.median(frame[inside], axis=0))
    return lab(np.array(colours))


def _bend(path: Trajectory) -> int | None:
    """The frame where place, size or angle turns from one straight line to another; None where one line will do."""
    mean_radius = np.nanmean(path.radii)
    state = np.column_stack(
        [path.centroids / MIN_TRAVEL, path.radii / mean_radius / MIN_GROWTH, path.angles / MIN_TURN]
    )  # f 4, in the least motions that count
    found = np.flatnonzero(np.isfinite(state).all(axis=1))
    if len(found) < 2 * SHORTEST_PART:
        return None
    state = state[found]
    one = _left_over(state, degree=1)
    if (one / len(state)) ** 0.5 < MIN_BEND:
        return None
    cut = _best_cut(state, degree=1)
    two = _left_over(state[:cut], degree=1) + _left_over(state[cut:], degree=1)
    return int(found[cut]) if two <= MAX_LEFT_OVER * one else None


def _best_cut(values: np.ndarray, degree: int) -> int:
    """Where to cut `f d` values into two parts that polynomials of this degree fit best."""
    cuts = range(SHORTEST_PART, len(values) - SHORTEST_PART + 1)
    return min(cuts, key=lambda k: _left_over(values[:k], degree) + _left_over(values[k:], degree))


def _left_over(values: np.ndarray, degree: int) -> float:
    """Squared distance of `f d` values from the polynomials of the frame number that fit them best."""
    basis = np.vander(np.arange(len(values), dtype=np.float64), degree + 1)
    solution = np.linalg.lstsq(basis, values, rcond=None)[0]
    return float(((values - basis @ solution) ** 2).sum())
