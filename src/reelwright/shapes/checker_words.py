"""The checker's readings of words that only some tracks have: the line of the named clips, and the graded words.

FROZEN with its own hash, like `checker.py`, whose readings this file leaves as they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reelwright.shapes.checker import Reading, read
from reelwright.shapes.checker_matte import Matte, Unreadable, extract
from reelwright.shapes.world import (
    DIRECTIONS,
    GRADED_GROWTH,
    GRADED_RADIUS,
    GRADED_TRAVEL,
    GRADED_TURN,
    LINE,
)

MIN_ELONGATION = 3.0  # length over width; the line's is 6, the diamond's 1.5
MAX_HOLLOW = 0.2  # of a rectangle's area: what an elongated object may differ from one of its second moments
NO_SHAPE = "the outline fits no shape"


def read_with_lines(video: np.ndarray, fps: float) -> Reading:
    """`checker.read`, which also knows a line: an object that fits no other shape, long, narrow and filled."""
    reading = read(video, fps)
    if NO_SHAPE not in reading.reasons:
        return reading
    try:
        matte = extract(video)
    except Unreadable:
        return reading
    elongation, fullness = _second_moments(matte)
    if elongation < MIN_ELONGATION or abs(fullness - 1) > MAX_HOLLOW:
        return reading
    reasons = tuple(reason for reason in reading.reasons if reason != NO_SHAPE)
    return replace(reading, factors=replace(reading.factors, shape=LINE), reasons=reasons)


def _second_moments(matte: Matte) -> tuple[float, float]:
    """Medians over the frames of length over width, and of the area over that of the rectangle, of equal moments.

    A rectangle of sides a and b has variances a^2 / 12 and b^2 / 12 along its axes.
    """
    alpha = matte.alpha[matte.present]
    _, height, width = alpha.shape
    area = alpha.sum(axis=(1, 2))
    column, row = np.arange(width), np.arange(height)
    x, y = alpha.sum(axis=1) @ column / area, alpha.sum(axis=2) @ row / area
    xx = alpha.sum(axis=1) @ column**2 / area - x**2
    yy = alpha.sum(axis=2) @ row**2 / area - y**2
    xy = np.einsum("fhw,h,w->f", alpha, row, column) / area - x * y
    middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    long, short = middle + spread, np.maximum(middle - spread, 1e-3)
    return float(np.median(np.sqrt(long / short))), float(np.median(area / (12 * np.sqrt(long * short))))


def read_graded(video: np.ndarray, fps: float) -> Reading:
    """`checker.read` with the graded track's words for speed and size."""
    reading = read(video, fps)
    path, motion = reading.trajectory, reading.factors.motion
    if path is None:
        return reading
    mean_radius = float(np.nanmean(path.radii))
    factors = replace(reading.factors, size=_word(mean_radius, GRADED_RADIUS))
    if motion is not None and motion != "still":
        seconds = path.duration_seconds
        if motion in DIRECTIONS:
            speed = _word(float(np.hypot(*path.velocity)) * seconds, GRADED_TRAVEL)
        elif motion == "rotating":
            speed = _word(abs(path.spin) * seconds, GRADED_TURN)
        else:
            speed = _word(abs(path.growth) * seconds / mean_radius, GRADED_GROWTH)
        factors = replace(factors, speed=speed)
    return replace(reading, factors=factors)


def _word(value: float, ranges: dict[str, tuple[float, float]]) -> str:
    """The word whose range is nearest: between two ranges the geometric middle decides."""
    words = list(ranges)
    for word, following in zip(words, words[1:], strict=False):
        if value < (ranges[word][1] * ranges[following][0]) ** 0.5:
            return word
    return words[-1]
