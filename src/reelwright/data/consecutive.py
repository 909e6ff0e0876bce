"""A video from its first frame to its last, a portion at a time: what `refine` reads, where training reads windows.

Both functions run in a decoding child (`data.sandbox`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

import av
import numpy as np
from numpy.typing import NDArray

from reelwright.data.colours import to_rgb
from reelwright.data.containers import BadVideo, opened
from reelwright.data.decode import decoded_frames, upright
from reelwright.data.resize import fit
from reelwright.types import Size, VideoFile

PORTION_BYTES = 32 << 20  # of pictures that are asked for at once
_LONGEST_DESCRIPTION = 64  # letters, of up to 12 bytes each as JSON


@dataclass(frozen=True)
class Container:
    """What a video's container says beside its frames."""

    rate: Fraction | None  # frames a second on average; None where it names none
    has_sound: bool
    description: str  # its tag of that name

    @classmethod
    def from_text(cls, text: str) -> Container:
        """What `describe` gave. BadVideo where it could not have given that."""
        try:
            plain = json.loads(text)
            rate = None if plain["rate"] is None else Fraction(*(int(number) for number in plain["rate"]))
            container = cls(rate, bool(plain["sound"]), str(plain["description"]))
        except (ValueError, TypeError, KeyError, ZeroDivisionError, OverflowError, RecursionError):
            raise BadVideo("made its decoder answer nonsense: no container's facts") from None
        return container


def describe(path: VideoFile) -> str:
    """The facts of a Container as JSON. BadVideo where the file holds no video."""
    with opened(path) as (container, stream):
        rate = stream.average_rate
        facts = {
            "rate": None if rate is None else [rate.numerator, rate.denominator],
            "sound": bool(container.streams.audio),
            "description": container.metadata.get("description", "")[:_LONGEST_DESCRIPTION],
        }
    return json.dumps(facts)


def portions(size: Size) -> list[tuple[int, Size]]:
    """(first frame, size) of each portion of a video, in order."""
    at_once = max(1, PORTION_BYTES // (size.height * size.width * 3))
    return [
        (first, Size(min(at_once, size.frames - first), size.height, size.width))
        for first in range(0, size.frames, at_once)
    ]


@dataclass
class _Reading:
    """A file left open behind the last portion that was read of it."""

    path: VideoFile
    next: int  # number of the next frame
    frames: Iterator[av.VideoFrame]


_left_open: list[_Reading] = []  # at most one: of the file this child read last


def read_portion(path: VideoFile, size: Size, first: int, rotation: int, mirrored: bool) -> NDArray[np.uint8]:
    """`size.frames` frames from number `first` on, uint8 `f h w c`, turned as the file says, of square pixels.

    Counted are the frames `probe` counts. Those asked for in order are decoded once: the file stays open in between.
    BadVideo where it ends before or does not decode.
    """
    reading = _left_open.pop() if _left_open else None
    if reading is None or (reading.path, reading.next) != (path, first):
        reading = _Reading(path, first, _sound_frames(path))
        for _ in islice(reading.frames, first):
            pass
    pictures = np.empty((*size.tuple, 3), dtype=np.uint8)
    count = 0
    for frame in islice(reading.frames, size.frames):
        pictures[count] = _picture(frame, size, rotation, mirrored)
        count += 1
    if count < size.frames:
        raise BadVideo(f"ends after {first + count} frames, where more were found before; it has changed")
    reading.next = first + count
    _left_open.append(reading)
    return pictures


def _sound_frames(path: VideoFile) -> Iterator[av.VideoFrame]:
    with opened(path) as (container, stream):
        yield from (frame for frame in decoded_frames(container, stream) if frame is not None)


def _picture(frame: av.VideoFrame, size: Size, rotation: int, mirrored: bool) -> NDArray[np.uint8]:
    """One frame as shown; where its stored shape differs from the shown one, by its pixels' aspect."""
    picture = upright(to_rgb(frame), rotation, mirrored)
    height, width = picture.shape[:2]
    if (height, width) == (size.height, size.width):
        return picture
    return fit(picture, size.height, size.width, size.width / size.height / (width / height))
