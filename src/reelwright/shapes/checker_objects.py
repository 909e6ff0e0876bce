"""The checker for two objects: they are told apart and followed, and each is read alone by `checker.read`.

Foreground = far from the border's median, at the lowest of three levels where two bodies stand in nearly every frame;
the two are followed from frame to frame by place and colour; each is then read in a copy of the video where the other
is painted over with the background.

FROZEN with its own hash, like `checker.py`, whose readings of one object this file leaves as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reelwright.shapes.checker import MAX_CROWDED, MIN_PERSISTENCE, Reading, read
from reelwright.shapes.checker_background import border_colour, distance_from_border
from reelwright.shapes.checker_matte import MAX_OTHER_AREA, MIN_AREA, MIN_CONTRAST, dilate, largest_components
from reelwright.shapes.colour import lab
from reelwright.shapes.world import Factors

LEVELS = (1.0, 1.5, 2.0)  # of MIN_CONTRAST: blurred objects that stand close part at a higher one
PLACE_SCALE, COLOUR_SCALE = 0.1, 40.0  # a step of a tenth of the frame weighs as much as a change of 40 in L*a*b*


@dataclass(frozen=True, eq=False)
class SceneReading:
    """What the checker read of each object; one alone where the video does not show two."""

    objects: tuple[Reading, ...]
    reasons: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        """Two objects on a plain background throughout."""
        return len(self.objects) == 2 and all(reading.valid for reading in self.objects)

    @property
    def abstained(self) -> str | None:
        """The first reason for not reading something; None where everything was read."""
        return self.reasons[0] if self.reasons else None


@dataclass(frozen=True, eq=False)
class _Bodies:
    """The two largest components of every frame, the larger first."""

    masks: np.ndarray  # 2 f h w bool
    areas: np.ndarray  # 3 f int: also of the third, which only crowds
    enough: np.ndarray  # 2 f bool: large enough to be an object


def read_objects(video: np.ndarray, fps: float) -> SceneReading:
    """Read a uint8 `f h w c` video of two objects, in no particular order. Errors are those of `checker.read`."""
    alone = read(video, fps)  # also refuses what is no video
    if alone.abstained == "the background is not plain":
        return SceneReading((alone,), alone.reasons)
    bodies = _two_bodies(video)
    if bodies is None:
        reason = alone.abstained if not alone.valid and alone.abstained else "there is one object, not two"
        return SceneReading((alone,), (reason,))
    if (bodies.areas[2] > MAX_OTHER_AREA * bodies.areas[1]).mean() > MAX_CROWDED:
        nothing = Reading(Factors(), None, ("there are more than two objects",))
        return SceneReading((nothing,), nothing.reasons)
    masks = _follow(video, bodies)
    readings = tuple(read(_without(video, masks[1 - k], masks[k]), fps) for k in (0, 1))
    return SceneReading(readings, tuple(dict.fromkeys(r for reading in readings for r in reading.reasons)))


def _two_bodies(video: np.ndarray) -> _Bodies | None:
    """The bodies at the lowest level where both are there in MIN_PERSISTENCE of the frames, if there is one."""
    side = min(video.shape[1:3])
    distance = distance_from_border(video)
    for level in LEVELS:
        first = largest_components(distance > level * MIN_CONTRAST)
        second = largest_components(first.others)
        areas = np.stack([first.main_area, second.main_area, second.other_area])
        enough = areas[:2] >= MIN_AREA * side * side
        if enough.all(axis=0).mean() >= MIN_PERSISTENCE:
            return _Bodies(np.stack([first.main, second.main]), areas, enough)
    return None


def _follow(video: np.ndarray, bodies: _Bodies) -> np.ndarray:
    """The same masks, `2 f h w`, by object instead of by area: each frame's two go where they cost least."""
    frames = len(video)
    masks = np.zeros_like(bodies.masks)
    last: list[np.ndarray | None] = [None, None]
    for f in range(frames):
        states = [_state(video[f], bodies.masks[k, f]) if bodies.enough[k, f] else None for k in (0, 1)]
        kept = sum(_cost(last[k], states[k]) for k in (0, 1))
        crossed = sum(_cost(last[k], states[1 - k]) for k in (0, 1))
        for k in (0, 1):
            source = k if kept <= crossed else 1 - k
            state = states[source]
            if state is not None:
                masks[k, f], last[k] = bodies.masks[source, f], state
    return masks


def _state(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A body's place and colour, in units of equal weight."""
    rows, columns = np.nonzero(mask)
    side = min(mask.shape)
    place = np.array([columns.mean(), rows.mean()]) / side / PLACE_SCALE
    return np.concatenate([place, lab(np.median(frame[mask], axis=0)) / COLOUR_SCALE])


def _cost(before: np.ndarray | None, now: np.ndarray | None) -> float:
    """Squared distance of two states; nothing is known of an object not seen yet, or of a body that is not there."""
    return 0.0 if before is None or now is None else float(((before - now) ** 2).sum())


def _without(video: np.ndarray, other: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The video with one body and its soft edge painted over with each frame's background."""
    side = min(video.shape[1:3])
    reach = max(2, round(side / 24))  # of the soft edge, as in `checker_matte`
    hidden = dilate(other, reach) & ~dilate(own, 1)
    background = border_colour(video).astype(np.uint8)  # f c
    return np.where(hidden[..., None], background[:, None, None], video)
