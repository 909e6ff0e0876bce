"""The vocabulary of the moving-shapes world: what an object, a scene and a prompt are.

Lengths are in units of the frame's shorter side; x runs right and y down. The world is the unit square, centred in
the frame: a wider or taller frame shows more background. An object's size is the radius of the circle of equal area,
so that shapes of one radius cover the same number of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "diamond", "cross")
CORE_SHAPES = SHAPES[:3]
LINE = "line"  # of the three named clips alone

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
CHANGES = ("bounces", "stops", "changes colour", "appears")
REGIONS = ("top left", "top right", "bottom left", "bottom right")

# Each pair of ranges leaves a gap between its two words: a clip's words are never a matter of opinion.
RADIUS: dict[str, tuple[float, float]] = {"small": (0.085, 0.105), "large": (0.14, 0.16)}  # at mid-clip
TRAVEL: dict[str, tuple[float, float]] = {"slowly": (0.17, 0.24), "quickly": (0.38, 0.46)}  # over the clip
GROWTH: dict[str, tuple[float, float]] = {"slowly": (0.30, 0.42), "quickly": (0.66, 0.80)}  # of the mid-clip radius
TURN: dict[str, tuple[float, float]] = {"slowly": (60.0, 85.0), "quickly": (140.0, 190.0)}  # degrees over the clip

# The graded track says more: words between the two above and beyond them, each with its own range.
GRADED_RADIUS: dict[str, tuple[float, float]] = {
    "very small": (0.070, 0.076), "small": RADIUS["small"], "medium": (0.118, 0.127), "large": RADIUS["large"],
    "very large": (0.185, 0.205),
}  # fmt: skip
GRADED_TRAVEL: dict[str, tuple[float, float]] = {
    "very slowly": (0.10, 0.13), "slowly": TRAVEL["slowly"], "moderately": (0.285, 0.325),
    "quickly": TRAVEL["quickly"], "very quickly": (0.57, 0.65),
}  # fmt: skip
GRADED_GROWTH: dict[str, tuple[float, float]] = {
    "very slowly": (0.19, 0.23), "slowly": GROWTH["slowly"], "moderately": (0.50, 0.56), "quickly": GROWTH["quickly"],
    "very quickly": (0.90, 0.95),
}  # fmt: skip
GRADED_TURN: dict[str, tuple[float, float]] = {
    "very slowly": (38.0, 46.0), "slowly": TURN["slowly"], "moderately": (102.0, 118.0), "quickly": TURN["quickly"],
    "very quickly": (230.0, 270.0),
}  # fmt: skip
GRADED_SPEEDS, GRADED_SIZES = tuple(GRADED_TRAVEL), tuple(GRADED_RADIUS)

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
    change: str | None = None  # what happens in mid-clip; the motion is then the one before it, or after appearing
    becomes: str | None = None  # the colour after a change of colour

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
    "shape": (*SHAPES, LINE),
    "colour": tuple(COLOURS),
    "motion": MOTIONS,
    "speed": GRADED_SPEEDS,
    "size": GRADED_SIZES,
    "region": REGIONS,
    "change": CHANGES,
    "becomes": tuple(COLOURS),
}


@dataclass(frozen=True)
class MovingObject:
    """One object's words and its state in numbers; at time t seconds it is at start + t * velocity, and so on.

    With a change, t is the object's own time: it runs back after a bounce, stands still after a stop, and starts when
    the object appears.
    """

    factors: Factors
    start: tuple[float, float]  # the centroid at t = 0
    velocity: tuple[float, float]  # per second
    radius: float  # at t = 0
    growth: float  # of the radius, per second
    angle: float  # degrees, clockwise as seen, at t = 0
    spin: float  # degrees per second
    change_at: float | None = None  # seconds into the clip; None where nothing changes


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
    kind: Literal["one", "two", "change", "graded", "named"] = "one"
    fewest_frames: int = 1  # of a clip in which everything can be seen

    @property
    def headline(self) -> tuple[str, ...]:
        """The factors that a headline prompt states."""
        more = {"change": ("change", "becomes"), "graded": ("speed", "size")}
        return (*HEADLINE, *more.get(self.kind, ()))


TRACKS: dict[str, Track] = {
    "s1": Track(CORE_SHAPES, ("charcoal",)),
    "s1-hard": Track(SHAPES, tuple(BACKGROUNDS)),
    "s2": Track(CORE_SHAPES, ("charcoal",), "two"),
    "s3": Track(CORE_SHAPES, ("charcoal",), "change", fewest_frames=12),
    "graded": Track(CORE_SHAPES, ("charcoal",), "graded"),
    "d2": Track(("circle", "square", LINE), ("charcoal",), "named"),
}


def find_track(name: str) -> Track:
    """The track of that name. ValueError lists the known ones."""
    if name not in TRACKS:
        raise ValueError(f"track = {name!r} is not known; use one of {', '.join(TRACKS)}")
    return TRACKS[name]


def is_possible(shape: str, motion: str, change: str | None = None) -> bool:
    """A turning circle looks like a still one, so the world has none; what changes moves, and what bounces travels."""
    if shape == "circle" and motion == "rotating":
        return False
    if change == "bounces":
        return motion in DIRECTIONS
    return change is None or motion != "still"
