"""The checker: what a video shows, read by classical means, without a network.

Background = median of the border; matte = projection of each pixel on the object's colour minus the background;
object = each frame's largest component; position = centroid of the matte; shape = best of soft, area-matched, blurred
templates over all frames; colour = nearest palette entry in L*a*b* on the eroded core; motion = straight lines through
the centroids, the radii and the template angles over time.

FROZEN. `frozen.py` holds the sha256 of this file, of `checker_matte.py`, `checker_templates.py`, `geometry.py`,
`colour.py` and of the world's constants. A change, however small, re-scores every table ever published with it; a test
fails until the hash is renewed. The checker is used in no loss and chooses no checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from reelwright.shapes.checker_matte import Matte, Unreadable, extract
from reelwright.shapes.checker_templates import match
from reelwright.shapes.colour import lab
from reelwright.shapes.geometry import SYMMETRY, pixel_centres
from reelwright.shapes.world import COLOURS, DIRECTIONS, GROWTH, RADIUS, TRAVEL, TURN, Factors

MIN_PERSISTENCE = 0.9  # share of frames in which the object is found
MAX_CROWDED = 0.25  # share of frames with a second object
MAX_COLOUR_DISTANCE = 40.0  # L*a*b* to the nearest palette entry
MAX_SHAPE_ERROR = 0.12  # of the matte's energy, to the best template; perfect clips have 0.006, a half disc 0.13

# The least motion that counts is half of the world's slowest, over the clip.
MIN_TRAVEL = TRAVEL["slowly"][0] / 2
MIN_GROWTH = GROWTH["slowly"][0] / 2
MIN_TURN = TURN["slowly"][0] / 2
MAX_SECOND_MOTION = 1.5  # of its minimum: what a motion beside the main one may reach and still be a drift

# Largest r.m.s. distance from the fitted line; shuffled frames of the slowest motion lie beyond it.
MAX_PATH_RESIDUAL = 0.03
MAX_RADIUS_RESIDUAL = 0.07  # of the mean radius
MAX_ANGLE_RESIDUAL = 10.0  # degrees


@dataclass(frozen=True)
class Line:
    """A least-squares line through a quantity over the frames."""

    start: float  # at the first frame
    per_frame: float
    residual: float  # r.m.s.


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The measured state over time, in world units (the frame's shorter side is 1)."""

    centroids: np.ndarray  # f 2 (x, y), nan where nothing is found
    radii: np.ndarray  # f, of the circle of equal area, nan where nothing is found
    angles: np.ndarray  # f degrees, unwrapped, nan where nothing is found
    start: tuple[float, float]  # of the line through the centroids, at the first frame
    velocity: tuple[float, float]  # per second
    start_radius: float
    growth: float  # of the radius, per second
    spin: float  # degrees per second; 0 where the angles do not follow a line
    path_residual: float  # r.m.s. distance of the centroids from their line
    colour: tuple[float, float, float]  # RGB of the core
    duration_seconds: float
    pixels: int  # the frame's shorter side


@dataclass(frozen=True, eq=False)
class Reading:
    """What the checker read. A factor that it could not read is None, and `reasons` says why."""

    factors: Factors
    trajectory: Trajectory | None  # None where no object could be followed
    reasons: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        """One object on a plain background throughout."""
        return self.trajectory is not None

    @property
    def abstained(self) -> str | None:
        """The first reason for not reading something; None where everything was read."""
        return self.reasons[0] if self.reasons else None


def read(video: np.ndarray, fps: float) -> Reading:
    """Read a uint8 `f h w c` video of at least 4 frames. `fps` gives the trajectory's velocities their seconds."""
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
        raise ValueError(f"video of {video.dtype} {video.shape}: the checker reads uint8 f h w 3")
    if len(video) < 4 or min(video.shape[1:3]) < 16:
        raise ValueError(f"video of {video.shape}: the checker needs at least 4 frames of 16 x 16 pixels")
    if fps <= 0:
        raise ValueError(f"fps = {fps} must be positive")
    try:
        matte = extract(video)
        _require_one_object(matte)
    except Unreadable as reason:
        return Reading(Factors(), None, (str(reason),))
    return _read_object(matte, fps)


def _require_one_object(matte: Matte) -> None:
    if matte.present.mean() < MIN_PERSISTENCE:
        raise Unreadable("the object is not there throughout")
    if matte.crowded.mean() > MAX_CROWDED:
        raise Unreadable("there is more than one object")


def _read_object(matte: Matte, fps: float) -> Reading:
    frames, height, width = matte.alpha.shape
    side = min(height, width)
    found = np.flatnonzero(matte.present)
    alpha = matte.alpha[found]
    area = alpha.sum(axis=(1, 2))
    column = (alpha.sum(axis=1) @ np.arange(width)) / area
    row = (alpha.sum(axis=2) @ np.arange(height)) / area
    radii = np.sqrt(area / np.pi)
    fit = match(alpha, np.stack([column, row], axis=1), radii)
    x, y = pixel_centres(height, width)
    symmetry = SYMMETRY[fit.shape]
    angles = np.unwrap(fit.angles, period=symmetry) if symmetry else fit.angles

    across, along = _line(found, column / side + x[0]), _line(found, row / side + y[0])
    radius, angle = _line(found, radii / side), _line(found, angles)
    trajectory = Trajectory(
        centroids=_spread(np.stack([column / side + x[0], row / side + y[0]], axis=1), found, frames),
        radii=_spread(radii / side, found, frames),
        angles=_spread(angles, found, frames),
        start=(across.start, along.start),
        velocity=(across.per_frame * fps, along.per_frame * fps),
        start_radius=radius.start,
        growth=radius.per_frame * fps,
        spin=angle.per_frame * fps if angle.residual <= MAX_ANGLE_RESIDUAL else 0.0,
        path_residual=float(np.hypot(across.residual, along.residual)),
        colour=(float(matte.colour[0]), float(matte.colour[1]), float(matte.colour[2])),
        duration_seconds=frames / fps,
        pixels=side,
    )
    mean_radius = float(radii.mean()) / side
    factors, reasons = _read_motion(trajectory, mean_radius, radius.residual / mean_radius, angle.residual)
    if fit.error <= MAX_SHAPE_ERROR:
        factors = replace(factors, shape=fit.shape)
    else:
        reasons.append("the outline fits no shape")
    nearest, distance = nearest_colour(matte.colour)
    if distance <= MAX_COLOUR_DISTANCE:
        factors = replace(factors, colour=nearest)
    else:
        reasons.append("the colour is none of the palette")
    return Reading(factors, trajectory, tuple(reasons))


def _read_motion(
    trajectory: Trajectory, mean_radius: float, radius_residual: float, angle_residual: float
) -> tuple[Factors, list[str]]:
    """Motion, speed, size and region, and the reasons for what could not be read."""
    seconds = trajectory.duration_seconds
    travel = float(np.hypot(*trajectory.velocity)) * seconds
    growth = trajectory.growth * seconds / mean_radius
    turn = trajectory.spin * seconds
    # How many times its minimum each kind of motion reaches, and where its word for the speed changes.
    kinds = {
        "travel": (travel / MIN_TRAVEL, travel / _middle(TRAVEL)),
        "growth": (abs(growth) / MIN_GROWTH, abs(growth) / _middle(GROWTH)),
        "turn": (abs(turn) / MIN_TURN, abs(turn) / _middle(TURN)),
    }
    (kind, (clear, pace)), (_, (second, _)), _ = sorted(kinds.items(), key=lambda item: -item[1][0])
    middle_size = (RADIUS["small"][1] * RADIUS["large"][0]) ** 0.5
    x, y = trajectory.start
    known = Factors(
        size="small" if mean_radius < middle_size else "large",
        region=f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}",
    )
    if trajectory.path_residual > MAX_PATH_RESIDUAL:
        return known, ["the path is not a straight line"]
    if radius_residual > MAX_RADIUS_RESIDUAL:
        return known, ["the size changes unevenly"]
    if clear < 1.0 and angle_residual > MAX_ANGLE_RESIDUAL:
        return known, ["the angle changes unevenly"]
    if clear < 1.0:
        return replace(known, motion="still"), []
    if second > MAX_SECOND_MOTION:
        return known, ["two motions at once"]
    if kind == "travel":
        motion = nearest_direction(trajectory.velocity)
    elif kind == "growth":
        motion = "growing" if growth > 0 else "shrinking"
    else:
        motion = "rotating"
    return replace(known, motion=motion, speed="slowly" if pace < 1.0 else "quickly"), []


def nearest_direction(velocity: tuple[float, float]) -> str:
    return max(DIRECTIONS, key=lambda name: DIRECTIONS[name][0] * velocity[0] + DIRECTIONS[name][1] * velocity[1])


def nearest_colour(rgb: np.ndarray) -> tuple[str, float]:
    """The palette entry nearest to an RGB colour, and its L*a*b* distance."""
    palette = lab(np.array(list(COLOURS.values())))
    distance = np.linalg.norm(palette - lab(rgb), axis=1)
    best = int(distance.argmin())
    return list(COLOURS)[best], float(distance[best])


def _middle(ranges: dict[str, tuple[float, float]]) -> float:
    """The boundary between slow and quick: the geometric mean of the gap's ends."""
    return (ranges["slowly"][1] * ranges["quickly"][0]) ** 0.5


def _line(time: np.ndarray, values: np.ndarray) -> Line:
    middle = time.mean()
    centred = time - middle
    per_frame = float(centred @ values / (centred @ centred))
    residual = values - values.mean() - per_frame * centred
    return Line(float(values.mean() - per_frame * middle), per_frame, float(np.sqrt(np.mean(residual**2))))


def _spread(values: np.ndarray, found: np.ndarray, frames: int) -> np.ndarray:
    """Values of the frames where the object was found, at their places among all frames; nan elsewhere."""
    whole = np.full((frames, *values.shape[1:]), np.nan)
    whole[found] = values
    return whole
