"""Augmentation: further variants of a clip, each read, changed and encoded once, as the clip itself is.

Variant 0 of a sample is its plain window. What variants 1, 2, ... look like is drawn by (bytes of the file, start of
the window, variant, kind of augmentation, name of the draw) and by nothing else: not by epoch, order or machine, so
that their latents can be cached. One draw holds for all frames of a clip.

A new augmentation is a subclass of `Augmentation` that overrides `read`, `change` or both. One of the package has its
name in `Augment`; one of a user's script is made known by `data.config.add_augmentation`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from reelwright.config import Config
from reelwright.randomness import derive_seed
from reelwright.types import Size

Frames = NDArray[np.uint8]  # `f h w c`

SIDES = (
    "left", "leftward", "leftwards", "leftmost", "right", "rightward", "rightwards", "rightmost", "east", "west",
    "clockwise", "anticlockwise", "counterclockwise",
    "text", "texts", "letter", "letters", "word", "words", "writing", "written", "writes", "write", "handwriting",
    "title", "titles", "caption", "captions", "subtitle", "subtitles", "sign", "signs", "logo", "logos", "label",
    "number", "numbers", "digit", "digits", "page", "read", "reads", "reading", "clock", "map",
)  # fmt: skip
SPEEDS = (
    "fast", "faster", "slow", "slower", "slowly", "slows", "quick", "quicker", "quickly", "rapid", "rapidly", "swift",
    "swiftly", "speed", "speeds", "sped", "gradually", "suddenly", "timelapse", "time lapse", "hyperlapse",
)  # fmt: skip
PLACES = ("corner", "corners", "edge", "edges", "border", "borders", "centre", "center", "wide shot", "close up")
COLOURS = (
    "red", "orange", "yellow", "green", "cyan", "blue", "purple", "violet", "magenta", "pink", "brown", "golden",
    "gold", "turquoise", "teal", "beige", "blonde", "colour", "color", "coloured", "colored", "colours", "colors",
    "colourful", "colorful", "skin",
)  # fmt: skip
WIDEST = 4.0  # of a longer picture than this times the sample's own aspect ratio a crop reads the middle: bounds memory

_WORD = re.compile(r"[^\W_]+")
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601-7, 2.5.1
_IN_PHASE, _QUADRATURE = (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)  # I and Q of NTSC's YIQ (SMPTE 170M)


@dataclass(frozen=True)
class Window:
    """What is decoded: `size.frames` pictures at `fps` from `start_seconds` after the first timestamp.

    With `end_seconds` they lie evenly between the two instead, and `fps` plays no part.
    """

    size: Size
    fps: float
    start_seconds: float
    end_seconds: float | None = None


@dataclass(frozen=True)
class Facts:
    """What a variant may depend on beside the settings."""

    sha256: str  # of the file
    captions: tuple[str, ...]
    window: Window  # the plain one
    earliest_seconds: float  # frames may be asked for from here ...
    latest_seconds: float  # ... to here, after the first timestamp
    width: int  # of the pictures as shown, before they are resized
    height: int


class Draw:
    """Random numbers of one augmentation in one variant of one clip, each by its own name.

    The same name gives the same number in `read` and in `change`, and one more draw changes no other.
    """

    def __init__(self, *key: int | str) -> None:
        self._key = key

    def uniform(self, name: str, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * (derive_seed(*self._key, name) / 2**63)

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + derive_seed(*self._key, name) % (high - low + 1)

    def generator(self, name: str) -> np.random.Generator:
        """For many numbers at once, such as noise."""
        return np.random.default_rng(derive_seed(*self._key, name))


class Augmentation(Config):
    """One way to change a clip. A subclass has a `type` and overrides `read`, `change` or both."""

    version: ClassVar[int] = 1  # a part of the latents' key: raise it when pixels could change
    probability: float = Field(default=1.0, gt=0, le=1)  # that a variant is changed in this way
    guard: tuple[str, ...] = ()  # clips whose captions hold one of these words or phrases are left as they are

    def read(self, window: Window, facts: Facts, draw: Draw) -> Window:
        """The window to be decoded instead of `window`, which earlier augmentations may have changed."""
        return window

    def change(self, frames: Frames, size: Size, draw: Draw) -> Frames:
        """Pixels uint8 `f h w c` -> the same. Where `read` asked for larger pictures it gives them back in `size`."""
        return frames

    def spares(self, captions: Iterable[str]) -> bool:
        """Whether the guard keeps this augmentation from clips with these captions."""
        pattern = _any_of(self.guard)
        return pattern is not None and any(pattern.search(_plain(caption)) for caption in captions)

    @property
    def kind(self) -> str:
        """Its `type`."""
        return str(type(self).model_fields["type"].default)


class Flip(Augmentation):
    """Mirrored left to right."""

    type: Literal["flip"] = "flip"
    probability: float = Field(default=0.5, gt=0, le=1)
    guard: tuple[str, ...] = SIDES

    def change(self, frames: Frames, size: Size, draw: Draw) -> Frames:
        return frames[:, :, ::-1]


class ColourJitter(Augmentation):
    """Brightness, contrast and saturation, each times a number from [1 - x, 1 + x].

    Contrast is about the clip's mean luma, one number for all frames, so that nothing flickers; saturation is about
    each pixel's own luma, which it keeps.
    """

    type: Literal["colour"] = "colour"
    brightness: float = Field(default=0.1, ge=0, lt=1)
    contrast: float = Field(default=0.1, ge=0, lt=1)
    saturation: float = Field(default=0.1, ge=0, lt=1)

    def change(self, frames: Frames, size: Size, draw: Draw) -> Frames:
        brightness, contrast, saturation = (
            draw.uniform(name, 1 - spread, 1 + spread)
            for name, spread in (
                ("brightness", self.brightness), ("contrast", self.contrast), ("saturation", self.saturation)
            )
        )  # fmt: skip
        towards_luma = (1 - saturation) * np.outer(np.ones(3), _LUMA)
        matrix = brightness * contrast * (saturation * np.eye(3) + towards_luma)
        return _affine(frames, matrix, (1 - contrast) * brightness * _mean_luma(frames))


class Hue(Augmentation):
    """All hues turned by up to `degrees` either way; luma stays. A red ball is one no longer: hence the guard."""

    type: Literal["hue"] = "hue"
    degrees: float = Field(default=18.0, gt=0, le=180)
    guard: tuple[str, ...] = COLOURS

    def change(self, frames: Frames, size: Size, draw: Draw) -> Frames:
        angle = math.radians(draw.uniform("degrees", -self.degrees, self.degrees))
        to_yiq = np.array([_LUMA, _IN_PHASE, _QUADRATURE])
        turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
        return _affine(frames, np.linalg.inv(to_yiq) @ turn @ to_yiq, 0.0)


class Crop(Augmentation):
    """A part of the picture in the sample's own aspect ratio, never stretched, anywhere in the whole source picture.

    Its side is `smallest` to 1 times that of the largest part there is, which is what a plain window shows of the
    middle. The same part in every frame.
    """

    type: Literal["crop"] = "crop"
    smallest: float = Field(default=0.8, ge=0.25, le=1)
    guard: tuple[str, ...] = PLACES

    def read(self, window: Window, facts: Facts, draw: Draw) -> Window:
        part = draw.uniform("part", self.smallest, 1.0)
        height, width = window.size.height / part, window.size.width / part
        longer = facts.width / facts.height / (width / height)  # the source's aspect ratio over the sample's
        if longer > 1:
            width *= min(longer, WIDEST)
        else:
            height *= min(1 / longer, WIDEST)
        size = Size(window.size.frames, max(window.size.height, round(height)), max(window.size.width, round(width)))
        return replace(window, size=size)

    def change(self, frames: Frames, size: Size, draw: Draw) -> Frames:
        top = draw.whole("top", 0, frames.shape[1] - size.height)
        left = draw.whole("left", 0, frames.shape[2] - size.width)
        return frames[:, top : top + size.height, left : left + size.width]


class Speed(Augmentation):
    """Frames nearer together or further apart in time: motion looks `slowest` to `fastest` times as fast.

    This changes the speed of motion. A window that would run past the end of its clip begins earlier, and where the
    whole clip is too short for it, motion is sped up only as far as there are frames.
    """

    type: Literal["speed"] = "speed"
    slowest: float = Field(default=0.8, ge=0.1, le=1)
    fastest: float = Field(default=1.25, ge=1, le=10)
    guard: tuple[str, ...] = SPEEDS

    def read(self, window: Window, facts: Facts, draw: Draw) -> Window:
        plain = (window.size.frames - 1) / window.fps  # seconds from the first frame to the last
        room = facts.latest_seconds - facts.earliest_seconds
        factor = math.exp(draw.uniform("factor", math.log(self.slowest), math.log(self.fastest)))
        if plain == 0 or plain * factor > room:
            factor = min(factor, max(1.0, room / plain)) if plain else 1.0
        if factor == 1.0:
            return window
        start = max(facts.earliest_seconds, min(window.start_seconds, facts.latest_seconds - plain * factor))
        return replace(window, fps=window.fps / factor, start_seconds=start)


Augment = Annotated[Flip | ColourJitter | Hue | Crop | Speed, Field(discriminator="type")]


@dataclass(frozen=True)
class VariantPlan:
    """What is read for one variant of a sample, and what is done to it."""

    window: Window  # to be decoded
    size: Size  # of the outcome
    steps: tuple[tuple[Augmentation, Draw], ...] = ()
    key: str = ""  # stands for all of this in the latents' key; empty where the plain window is left as it is


def plan_variant(augment: Sequence[Augmentation], facts: Facts, variant: int) -> VariantPlan:
    """What variant `variant` of a sample looks like; variant 0 is the plain window.

    Where guards and chance leave nothing to do, the plan is that of variant 0, so it is encoded once for both.
    """
    window, steps, done = facts.window, [], []
    for augmentation in augment if variant else ():
        draw = Draw("augment", facts.sha256, repr(facts.window.start_seconds), variant, augmentation.kind)
        if augmentation.spares(facts.captions) or draw.uniform("probability", 0, 1) >= augmentation.probability:
            continue
        read = augmentation.read(window, facts, draw)
        if read == window and type(augmentation).change is Augmentation.change:
            continue  # no effect on this clip
        window = read
        steps.append((augmentation, draw))
        # guard and probability have been decided: what counts is that this one is applied
        settings = augmentation.model_dump(mode="json", exclude={"guard", "probability"})
        done.append([augmentation.version, settings])
    if not steps:
        return VariantPlan(facts.window, facts.window.size)
    read_as = [str(window.size), window.fps, window.start_seconds, window.end_seconds]
    return VariantPlan(window, facts.window.size, tuple(steps), json.dumps([variant, read_as, done], sort_keys=True))


def apply(plan: VariantPlan, frames: Frames) -> Frames:
    """Decoded pictures of `plan.window`, uint8 `f h w c`, as the variant shows them; of shape `plan.size`.

    TypeError names an augmentation that gives anything else back.
    """
    for augmentation, draw in plan.steps:
        frames = augmentation.change(frames, plan.size, draw)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[::3] != (plan.size.frames, 3):
            raise TypeError(
                f"{type(augmentation).__name__}.change gave {frames.dtype} {frames.shape}; "
                f"uint8 pictures ({plan.size.frames}, height, width, 3) are expected"
            )
    if frames.shape[:3] != plan.size.tuple:
        last = type(plan.steps[-1][0]).__name__ if plan.steps else "no augmentation"
        raise TypeError(f"pictures {frames.shape[:3]} after {last}, {plan.size.tuple} are expected")
    return np.ascontiguousarray(frames)


def check_augment(augment: Sequence[Augmentation], variants: int, window: str) -> None:
    """ValueError where `data.augment`, `data.variants` and `data.window` contradict each other or have no effect."""
    kinds = [augmentation.kind for augmentation in augment]
    if augment and variants == 1:
        raise ValueError(
            f"augment = [{', '.join(kinds)}] has no effect with variants = 1, the plain clips alone: latents are "
            "cached, so give the number of variants of each clip to encode and keep, such as variants = 4, "
            "or leave augment empty"
        )
    if variants > 1 and not augment:
        raise ValueError(
            f"variants = {variants} without augment would encode the same clip {variants} times: "
            "say how they differ, such as augment = [{type: flip}], or set variants = 1"
        )
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValueError(f"augment names {kind} twice; give each kind once")
    if "speed" in kinds and window == "spread":
        raise ValueError(
            "augment: speed needs data.fps; with window = spread the whole clip sets the speed: remove one"
        )


def _plain(text: str) -> str:
    """Words in lower case with one space before and after each."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


@lru_cache(maxsize=64)
def _any_of(phrases: tuple[str, ...]) -> re.Pattern[str] | None:
    """Finds any of the phrases in what `_plain` gives; None where there is none."""
    return re.compile("|".join(re.escape(_plain(phrase)) for phrase in phrases)) if phrases else None


def _mean_luma(frames: Frames) -> float:
    """Mean BT.601 luma over all pixels; sums of whole numbers, so equal on every machine."""
    sums = frames.reshape(-1, 3).sum(axis=0, dtype=np.int64)
    return float(np.dot(sums / (frames.size // 3), _LUMA))


def _affine(frames: Frames, matrix: NDArray[np.float64], offset: float) -> Frames:
    """Each pixel's colour times `matrix` plus `offset`, rounded and clipped; frame by frame, to bound the memory."""
    out = np.empty_like(frames)
    rows = matrix.astype(np.float32)
    for number, picture in enumerate(frames):
        red, green, blue = (picture[..., channel].astype(np.float32) for channel in range(3))
        for channel, (r, g, b) in enumerate(rows):
            mixed = r * red + g * green + b * blue + np.float32(offset)
            out[number, ..., channel] = np.clip(np.rint(mixed), 0, 255)
    return out
