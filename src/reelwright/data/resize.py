"""Area resize and centre crop, the same to the last bit on every machine.

All sums are of integers and exact, so neither their order nor the processor can change a single pixel, and no BLAS
wakes its threads for pictures this small.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESIZE_RULE = "area-centre-1"  # part of a latent's key: change it whenever a pixel could change
_ONE = 1 << 16  # weights are integers that sum to this
_STRIP_NUMBERS = 1 << 16  # columns times channels that are worked on at once


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
    out = np.empty((len(rows.lines), len(columns.lines), channels), dtype=np.uint8)
    # In strips that stay in the processor's cache: whole pictures of wide numbers cost three times as much.
    height = max(1, _STRIP_NUMBERS // ((last - first) * channels))
    for top in range(0, len(out), height):
        lines = _Taps(rows.lines[top : top + height], rows.weights[top : top + height])
        out[top : top + height] = _strip(part, lines, _Taps(columns.lines - first, columns.weights))
    return out


def _strip(part: NDArray[np.uint8], rows: _Taps, columns: _Taps) -> NDArray[np.uint8]:
    """Some lines of the outcome, `h w c`."""
    low, high = int(rows.lines.min()), int(rows.lines.max()) + 1
    (count, taps), (wide, channels) = rows.lines.shape, part.shape[1:]
    band = part[low:high].reshape(high - low, -1)
    # 8-bit pixels times 16-bit weights fit 32 bits.
    weights = rows.weights.astype(np.int32)
    tall = band[rows.lines[:, 0] - low] * weights[:, 0, None]  # h w*c
    product = np.empty_like(tall)
    for tap in range(1, taps):
        tall += np.multiply(band[rows.lines[:, tap] - low], weights[:, tap, None], out=product)
    turned = tall.reshape(count, wide, channels).transpose(1, 0, 2).reshape(wide, -1)  # w h*c: whole lines are taken
    # Times another 16 bits they fit 40, which float64 holds as exactly as integers and multiplies faster.
    scale = columns.weights.astype(np.float64)
    small = turned[columns.lines[:, 0]] * scale[:, 0, None]
    wider = np.empty_like(small)
    for tap in range(1, columns.lines.shape[1]):
        small += np.multiply(turned[columns.lines[:, tap]], scale[:, tap, None], out=wider)
    small += 2.0**31
    small *= 2.0**-32
    return small.astype(np.uint8).reshape(len(small), count, channels).transpose(1, 0, 2)
