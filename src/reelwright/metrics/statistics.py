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


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Low and high end of Student's t interval of the mean: mean -+ t * s / sqrt(n), s with n - 1.

    One value says nothing of the spread: (-inf, inf).
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"values must be a list of at least one number, got shape {array.shape}")
    if array.size == 1:
        return -math.inf, math.inf
    mean = float(array.mean())
    reach = student_t_quantile(confidence, array.size - 1) * float(array.std(ddof=1)) / math.sqrt(array.size)
    return mean - reach, mean + reach


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
