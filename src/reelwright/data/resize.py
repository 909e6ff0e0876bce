"""Area resize and centre crop, the same to the last bit on every machine.

All sums are of integers, so neither their order nor the processor can change a single pixel, and no BLAS wakes its
threads for pictures this small.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESIZE_RULE = "area-centre-1"  # part of a latent's key: change it whenever a pixel could change
_ONE = 1 << 16  # weights are integers that sum to this


def fit(picture: NDArray[np.uint8], height: int, width: int, pixel_aspect: float = 1.0) -> NDArray[np.uint8]:
    """`h w c` -> `height width c`: the largest centred part of the wanted shape, resized.

    `pixel_aspect` is a pixel's width over its height. Shrinking averages areas, enlarging interpolates linearly.
    Where the part has whole pixels and the wanted size, it is copied.
    """
    stored_height, stored_width = picture.shape[:2]
    shape = width / height / pixel_aspect  # columns per row of the part that is kept
    part_height = min(float(stored_height), stored_width / shape)
    part_width = min(float(stored_width), stored_height * shape)
    rows = _taps(stored_height, _start(stored_height, part_height), part_height, height)
    columns = _taps(stored_width, _start(stored_width, part_width), part_width, width)
    return _resize(picture, rows, columns)


def _start(extent: int, part: float) -> int:
    """First row or column of a centred part; a whole number, so that a whole part is not blurred by half a pixel."""
    return int((extent - part) / 2 + 1e-9)


class _Taps(NamedTuple):
    """Output line i is the sum over t of `weights[i, t]` times stored line `lines[i, t]`, divided by 2^16."""

    lines: NDArray[np.intp]  # count taps
    weights: NDArray[np.int64]  # count taps


@lru_cache(maxsize=64)
def _taps(extent: int, start: int, part: float, count: int) -> _Taps:
    """How lines start..start+part of `extent` become `count` lines."""
    scale = part / count
    edges = start + scale * np.arange(count + 1)
    lower, upper = edges[:-1, None], edges[1:, None]
    if scale >= 1:  # overlap of each output interval with each stored line
        lines = np.floor(lower + 1e-9) + np.arange(math.ceil(scale) + 1)
        exact = np.minimum(upper, lines + 1) - np.maximum(lower, lines)
    else:  # linear interpolation between line centres, the outermost held at the rim of the part
        centres = np.clip((lower + upper) / 2, start + 0.5, start + max(part, 1.0) - 0.5)
        lines = np.floor(centres - 0.5) + np.arange(2)
        exact = 1 - np.abs(lines + 0.5 - centres)
    exact = np.clip(exact, 0, None) * (lines < extent)
    weights = np.rint(exact / exact.sum(axis=1, keepdims=True) * _ONE).astype(np.int64)
    weights[np.arange(count), weights.argmax(axis=1)] += _ONE - weights.sum(axis=1)
    used = weights.any(axis=0)
    return _Taps(np.minimum(lines, extent - 1).astype(np.intp)[:, used], weights[:, used])


def _resize(picture: NDArray[np.uint8], rows: _Taps, columns: _Taps) -> NDArray[np.uint8]:
    first, last = int(columns.lines.min()), int(columns.lines.max()) + 1
    part, channels = picture[:, first:last], picture.shape[2]
    if rows.lines.shape[1] == columns.lines.shape[1] == 1:  # whole pixels: a copy
        return np.ascontiguousarray(part[rows.lines[:, 0]][:, columns.lines[:, 0] - first])
    # 8-bit pixels times 16-bit weights fit 32 bits, and times another 16 bits fit 64.
    tall = np.zeros((len(rows.lines), last - first, channels), dtype=np.int32)
    for tap in range(rows.lines.shape[1]):
        lines = part[rows.lines[:, tap]].astype(np.int32)
        lines *= rows.weights[:, tap, None, None].astype(np.int32)
        tall += lines
    small = np.zeros((len(tall), len(columns.lines), channels), dtype=np.int64)
    for tap in range(columns.lines.shape[1]):
        small += tall[:, columns.lines[:, tap] - first] * columns.weights[:, tap, None]
    return ((small + (1 << 31)) >> 32).astype(np.uint8)
