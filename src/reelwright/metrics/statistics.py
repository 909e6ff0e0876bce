"""Intervals for what was measured on few samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def wilson_interval(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Low and high end of the score interval of a proportion, k successes of n (Wilson 1927; z = 1.96 for 95 %).

    Unlike the normal approximation it stays inside [0, 1] and is right near 0 and 1. No trials say nothing: (0, 1).
    """
    if not 0 <= k <= n:
        raise ValueError(f"k = {k} successes of n = {n}: k must lie between 0 and n")
    if n == 0:
        return 0.0, 1.0
    share = k / n
    centre = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


UNBOUNDED = (-math.inf, math.inf)

# What a metric's name begins with -> the least and the greatest value its mean can have; the first that fits counts.
_RANGES = (
    ("CLIP cosine, matched minus shuffled", (-2.0, 2.0)),
    ("CLIP cosine", (-1.0, 1.0)),
    ("CLIPScore", (0.0, 2.5)),
    ("frame consistency", (-1.0, 1.0)),
    ("warping error", (0.0, 3.0)),
    ("binding deficit", (-1.0, 1.0)),
    ("direction error", (0.0, 180.0)),
    *(
        (name, (0.0, math.inf))
        for name in (
            "held-out loss", "fixed-noise loss", "loss at fixed noise", "dynamic degree", "change not explained",
            "PSNR", "Frechet", "median distance", "path residual", "diversity of", "generated frames per second",
        )
    ),
)  # fmt: skip


def possible_range(metric: str) -> tuple[float, float]:
    """The least and the greatest value that the mean of a metric can have; UNBOUNDED where its name is not known."""
    return next((bounds for name, bounds in _RANGES if metric.startswith(name)), UNBOUNDED)


def clipped(interval: tuple[float, float], bounds: tuple[float, float]) -> tuple[float, float]:
    """The part of an interval that lies within `bounds`."""
    low, high = interval
    least, most = bounds
    return min(max(low, least), most), max(min(high, most), least)


def mean_interval(
    values: Sequence[float] | np.ndarray, confidence: float = 0.95, bounds: tuple[float, float] = UNBOUNDED
) -> tuple[float, float]:
    """Low and high end of Student's t interval of the mean: mean -+ t * s / sqrt(n), s with n - 1.

    `bounds` are the values a mean can have at all: what reaches beyond them is cut off. As the true mean lies within
    them, the interval that is left holds it exactly as often. (A percentile bootstrap keeps within them too, but of few
    values it is too narrow: of five uniform ones it held the mean in 83 % of 3,000 draws, this one in 93 %.)

    One value says nothing of the spread: the bounds themselves, or UNBOUNDED where one of them is infinite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"values must be a list of at least one number, got shape {array.shape}")
    if array.size == 1:
        return bounds if all(map(math.isfinite, bounds)) else UNBOUNDED
    mean = float(array.mean())
    reach = student_t_quantile(confidence, array.size - 1) * float(array.std(ddof=1)) / math.sqrt(array.size)
    return clipped((mean - reach, mean + reach), bounds)


def student_t_quantile(confidence: float, degrees: int) -> float:
    """The t with P(-t < T < t) = confidence for T of Student's distribution with whole `degrees` of freedom."""
    if not 0 < confidence < 1 or degrees < 1:
        raise ValueError(f"confidence = {confidence} must lie between 0 and 1, degrees = {degrees} must be at least 1")
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        if _central_probability(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.tan(low) * math.sqrt(degrees)


def _central_probability(angle: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) * tan(angle)), the finite sums of Abramowitz & Stegun 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    first = 2 if degrees % 2 else 1
    steps = np.arange(first, degrees - 1, 2, dtype=np.float64)
    factors = steps / (steps + 1) * cosine**2
    total = 1.0 + float(np.cumprod(factors).sum())
    if degrees % 2 == 0:
        return sine * total
    return 2 / math.pi * (angle + (sine * cosine * total if degrees > 1 else 0.0))
