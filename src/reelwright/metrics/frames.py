"""Pixel distances between videos."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def mse(a: Any, b: Any) -> float:
    """Mean squared error over all elements of two arrays or tensors of one shape, in float64."""
    first, second = _as_array(a), _as_array(b)
    if first.shape != second.shape:
        raise ValueError(f"cannot compare {first.shape} with {second.shape}: both videos need the same frames and size")
    if first.dtype != second.dtype:
        raise ValueError(f"cannot compare {first.dtype} with {second.dtype}: both videos need the same kind of pixels")
    if first.size == 0:
        raise ValueError(f"cannot compare empty videos, got {first.shape}")
    return float(np.mean(np.square(first.astype(np.float64) - second.astype(np.float64))))


def psnr(a: Any, b: Any, peak: float | None = None) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(peak^2 / mse), over the whole video; inf for equal ones.

    `peak` is the distance from black to white: 255 for uint8; for float it must be given (2.0 for [-1, 1]).
    """
    if peak is None:
        if _as_array(a).dtype != np.uint8:
            raise ValueError("peak is not given: for float pixels say the distance from black to white, e.g. peak=2.0")
        peak = 255.0
    if not peak > 0:
        raise ValueError(f"peak = {peak}: it must be positive")
    error = mse(a, b)
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def _as_array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values  # numpy knows no bfloat16
        return values.numpy()
    return np.asarray(values)
