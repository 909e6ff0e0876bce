"""The vocabulary of the moving-shapes world: what an object, a scene and a prompt are.

Lengths are in units of the frame's shorter side; x runs right and y down. The world is the unit square, centred in
the frame: a wider or taller frame shows more background. An object's size is the radius of the circle of equal area,
so that shapes of one radius cover the same number of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "diamond", "cross")
CORE_SHAPES = SHAPES[:3]

# At least 45 apart from one another in L*a*b*, at least 50 from every background.
COLOURS: dict[str, RGB] = {
    "red": (205, 25, 45),
    "orange": (255, 150, 20),
    "yellow": (250, 235, 60),
    "green": (40, 160, 50),
    "cyan": (20, 205, 230),
    "blue": (50, 80, 235),
    "pink": (240, 90, 200),
    "white": (245, 245, 245),
}
BACKGROUNDS: dict[str, RGB] = {"charcoal": (36, 36, 40), "slate": (66, 78, 94), "brown": (92, 68, 48)}

_DIAGONAL = math.sqrt(0.5)
DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up-left": (-_DIAGONAL, -_DIAGONAL),
    "up-right": (_DIAGONAL, -_DIAGONAL),
    "down-left": (-_DIAGONAL, _DIAGONAL),
    "down-right": (_DIAGONAL, _DIAGONAL),
}
MOTIONS = (*DIRECTIONS, "growing", "shrinking", "rotating", "still")
SPEEDS = ("slowly", "quickly")
SIZES = ("small", "large")
REGIONS = ("top left", "top right", "bottom left", "bottom right")

# Each pair of ranges leaves a gap between its two words: a clip's words are never a matter of opinion.
RADIUS: dict[str, tuple[float, float]] = {"small": (0.085, 0.105), "large": (0.14, 0.16)}  # at mid-clip
TRAVEL: dict[str, tuple[float, float]] = {"slowly": (0.17, 0.24), "quickly": (0.38, 0.46)}  # over the clip
GROWTH: dict[str, tuple[float, float]] = {"slowly": (0.30, 0.42), "quickly": (0.66, 0.80)}  # of the mid-clip radius
TURN: dict[str, tuple[float, float]] = {"slowly": (60.0, 85.0), "quickly": (140.0, 190.0)}  # degrees over the clip

HEADLINE = ("shape", "colour", "motion")


@dataclass(frozen=True)
class Factors:
    """What can be said of one object. None means not stated in a prompt, not readable in a video, or not applicable
    (a still object has no speed)."""

    shape: str | None = None
    colour: str | None = None
    motion: str | None = None
    speed: str | None = None
    size: str | None = None
    region: str | None = None  # where the object starts

    def __post_init__(self) -> None:
        for name, known in FACTOR_VALUES.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise ValueError(f"{name} = {value!r} is not a word of the world; use one of {', '.join(known)}")

    def stated(self) -> dict[str, str]:
        """The factors that are not None, in a fixed order."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def only(self, names: tuple[str, ...]) -> Factors:
        """The same object with every factor outside `names` left unstated."""
        return Factors(**{name: value for name, value in self.stated().items() if name in names})


FACTOR_VALUES: Mapping[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "motion": MOTIONS,
    "speed": SPEEDS,
    "size": SIZES,
    "region": REGIONS,
}


@dataclass(frozen=True)
class MovingObject:
    """One object's words and its state in numbers; at time t seconds it is at start + t * velocity, and so on."""

    factors: Factors
    start: tuple[float, float]  # the centroid at t = 0
    velocity: tuple[float, float]  # per second
    radius: float  # at t = 0
    growth: float  # of the radius, per second
    angle: float  # degrees, clockwise as seen, at t = 0
    spin: float  # degrees per second


@dataclass(frozen=True)
class Scene:
    """Everything a clip shows. Its objects stay inside the unit square for `duration_seconds`."""

    objects: tuple[MovingObject, ...]
    background: str
    duration_seconds: float


@dataclass(frozen=True)
class Prompt:
    """A caption, what it states of each object, and a scene it is true of."""

    caption: str
    stated: tuple[Factors, ...]
    scene: Scene


@dataclass(frozen=True)
class Track:
    """The part of the world that a collection is drawn from."""

    shapes: tuple[str, ...]
    backgrounds: tuple[str, ...]


# S2 (two objects) and S3 (change over time) will stand beside these two.
TRACKS: dict[str, Track] = {
    "s1": Track(CORE_SHAPES, ("charcoal",)),
    "s1-hard": Track(SHAPES, tuple(BACKGROUNDS)),
}


def find_track(name: str) -> Track:
    """The track of that name. ValueError lists the known ones."""
    if name not in TRACKS:
        raise ValueError(f"track = {name!r} is not known; use one of {', '.join(TRACKS)}")
    return TRACKS[name]


def is_possible(shape: str, motion: str) -> bool:
    """A turning circle looks like a still one, so the world has none."""
    return not (shape == "circle" and motion == "rotating")
