"""How a video looks, in a few facts taken while it is decoded anyway: is it black, frozen, or known already?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

SIDE = 32  # small pictures are SIDE x SIDE grey levels, 0 black to 255 white
MOST_KEPT = 16
BLACK = 20.0  # no part of a black video is brighter than this
FROZEN = 8.0  # no part of a frozen video changes by more than this: up to 6 where a still picture is coded badly
FLAT = 6  # a picture whose darkest and brightest parts are no further apart has nothing to be known by
HASH_BITS = 64

Small = NDArray[np.uint8]


@dataclass(frozen=True)
class Looks:
    """Of up to 16 small grey pictures, evenly spaced over a video. Grey levels are 0..255."""

    pictures: int  # how many were compared
    brightest: float  # the brightest part of any picture
    change: float  # mean absolute change from one picture to the next; 0 where nothing ever changes
    largest_change: float  # between the darkest and the brightest moment of any part
    hashes: tuple[int, int, int]  # `picture_hash` of the first, the middle and the last picture

    def __post_init__(self) -> None:
        levels = self.brightest, self.change, self.largest_change
        if type(self.pictures) is not int or not all(type(level) is float and 0 <= level <= 255 for level in levels):
            raise ValueError(f"{self.pictures} pictures, grey levels {levels}: must be a count and numbers in 0..255")
        if len(self.hashes) != 3 or not all(type(bits) is int and 0 <= bits < 1 << HASH_BITS for bits in self.hashes):
            raise ValueError(f"hashes = {self.hashes}: must be three numbers of {HASH_BITS} bits")

    @property
    def is_black(self) -> bool:
        return self.brightest <= BLACK

    @property
    def is_frozen(self) -> bool:
        """Whether all pictures show the same. Small things that move change their own part, if hardly the mean."""
        return self.pictures > 1 and self.largest_change <= FROZEN

    def distance(self, other: Looks) -> int:
        """Bits by which two videos differ, 0 to 64: the most of their first, middle and last pictures."""
        return max(distance(a, b) for a, b in zip(self.hashes, other.hashes, strict=True))

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> Looks:
        """ValueError, TypeError or KeyError where these are no looks."""
        first, middle, last = plain["hashes"]
        return Looks(**{**plain, "hashes": (first, middle, last)})


UNSEEN = Looks(pictures=0, brightest=255.0, change=0.0, largest_change=0.0, hashes=(0, 0, 0))


def distance(a: int, b: int) -> int:
    """Bits by which two hashes differ (Hamming), 0 to 64; all 64 where either picture is too flat to be known by."""
    return (a ^ b).bit_count() if a and b else HASH_BITS


class Observer:
    """Shown every frame of a video in turn, it keeps at most 16 small pictures and in the end says how it looks.

    The length need not be known: pictures are kept for whole multiples of an interval, and whenever there are too many
    the interval is doubled and every second one let go. By time and not by number, so that a copy at another frame
    rate is known by the same pictures. 8 more are made when the length doubles.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[int, Small]] = []  # with the multiple each stands for
        self._interval = 1 / 16  # seconds
        self._started: float | None = None  # what the first frame's time would be, had no time fallen back since
        self._elapsed = 0.0
        self._darkest_parts = np.full((SIDE, SIDE), 255, dtype=np.uint8)  # over all pictures made, kept or not
        self._brightest_parts = np.zeros((SIDE, SIDE), dtype=np.uint8)
        self._scaler = VideoReformatter()  # one for all frames: setting one up takes longer than using it

    def see(self, frame: av.VideoFrame, upright: Callable[[Small], Small]) -> None:
        """`upright` turns the small picture as the file wants it shown."""
        self._advance(frame.time)
        multiple = int(self._elapsed / self._interval + 1e-6)
        if self._kept and multiple <= self._kept[-1][0]:
            return
        small = np.ascontiguousarray(upright(small_picture(frame, self._scaler)))
        np.minimum(self._darkest_parts, small, out=self._darkest_parts)
        np.maximum(self._brightest_parts, small, out=self._brightest_parts)
        self._kept.append((multiple, small))
        while len(self._kept) > MOST_KEPT:
            self._interval *= 2
            self._kept = [(multiple // 2, small) for multiple, small in self._kept if multiple % 2 == 0]

    def _advance(self, seconds: float | None) -> None:
        """Frames without a time follow at 25 fps; a time that falls by more than a second starts a new recording."""
        if seconds is None:
            self._elapsed += 1 / 25 if self._kept else 0
        elif self._started is None:
            self._started = seconds - self._elapsed
        else:
            if seconds - self._started < self._elapsed - 1:
                self._started = seconds - self._elapsed
            self._elapsed = max(self._elapsed, seconds - self._started)

    def looks(self) -> Looks:
        """AssertionError before the first frame."""
        assert self._kept
        kept = np.stack([small for _, small in self._kept]).astype(np.int16)
        changes = np.abs(np.diff(kept, axis=0))
        first, middle, last = (self._kept[i][1] for i in (0, len(kept) // 2, -1))
        return Looks(
            pictures=len(kept),
            brightest=float(self._brightest_parts.max()),
            change=float(changes.mean()) if len(changes) else 0.0,
            largest_change=float((self._brightest_parts - self._darkest_parts).max()),
            hashes=(picture_hash(first), picture_hash(middle), picture_hash(last)),
        )


def small_picture(frame: av.VideoFrame, scaler: VideoReformatter) -> Small:
    """SIDE x SIDE means of the luma as stored, 0 black to 255 white."""
    small = scaler.reformat(frame, SIDE, SIDE, "gray", interpolation="AREA", dst_color_range="JPEG", threads=1)
    return np.asarray(small.to_ndarray(), dtype=np.uint8)


def picture_hash(small: Small) -> int:
    """64 bits that stay much the same when a picture is scaled, re-encoded, brightened or given more contrast.

    Bit k says whether coefficient k of the 8 x 8 lowest of the picture's discrete cosine transform is above the median
    of the 63 that are no mean (pHash: Zauner 2010, 3.2.1). The mean's own bit is always set, so that only flat pictures
    have hash 0. Integers throughout: no machine rounds differently.
    """
    levels = small.astype(np.int64)
    if int(levels.max() - levels.min()) <= FLAT:
        return 0
    basis = _cosines()
    coefficients = (basis @ levels @ basis.T).ravel()
    above = coefficients > np.median(coefficients[1:])
    above[0] = True
    return int.from_bytes(np.packbits(above).tobytes(), "big")


@lru_cache(maxsize=1)
def _cosines() -> NDArray[np.int64]:
    """The 8 lowest rows of the DCT-II of length SIDE, times 4096."""
    angles = np.pi / SIDE * np.outer(np.arange(8), np.arange(SIDE) + 0.5)
    return np.rint(4096 * np.cos(angles)).astype(np.int64)
