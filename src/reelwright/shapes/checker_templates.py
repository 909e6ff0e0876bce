"""Which shape a soft matte shows, and at what angle: matching against templates of equal area.

Every frame's matte is resampled to a grid centred on its centroid and scaled by the radius of the circle of equal
area. There it is compared with each shape at a sweep of angles and blurs, and the squared errors' logarithms are summed
over the frames: one sharp frame then counts, and no frame alone decides.

Part of the frozen checker: see `checker.py` before changing anything here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from reelwright.shapes.geometry import SYMMETRY, signed_distance

GRID = 32
EXTENT = 2.2  # half the grid's width in equal-area radii; the longest reach of a shape is 1.62
ANGLE_STEP = 5.0
BLURS = (0.04, 0.08, 0.12, 0.18, 0.26, 0.36)  # standard deviations in equal-area radii
_OVERSAMPLING = 4
ERROR_FLOOR = 1e-3  # of the template's energy; below it a better fit is chance


@dataclass(frozen=True, eq=False)
class Templates:
    """Templates of one shape at every angle and blur, and their sums of squares."""

    values: np.ndarray  # angles * blurs, GRID * GRID float32
    energy: np.ndarray  # angles * blurs


@dataclass(frozen=True, eq=False)
class ShapeFit:
    shape: str
    error: float  # geometric mean over frames of the squared error, as a share of the matte's energy
    angles: np.ndarray  # f degrees within the shape's symmetry; zeros for a circle


def match(alpha: np.ndarray, centroids: np.ndarray, radii: np.ndarray) -> ShapeFit:
    """The best shape for mattes `f h w`, centroids `f 2` (x, y) and equal-area radii `f`, in pixels."""
    samples = _resample(alpha, centroids, radii)
    energy = np.einsum("fp,fp->f", samples, samples)
    best: ShapeFit | None = None
    for shape in SYMMETRY:
        templates = _templates(shape)
        squared = energy[:, None] + templates.energy - 2.0 * (samples @ templates.values.T)
        relative = squared.reshape(len(samples), -1, len(BLURS)).min(axis=2) / energy[:, None]  # f angles
        error = float(np.exp(np.log(np.maximum(relative.min(axis=1), ERROR_FLOOR)).mean()))
        if best is None or error < best.error:
            best = ShapeFit(shape, error, _refine_angles(relative, SYMMETRY[shape]))
    assert best is not None
    return best


def _resample(alpha: np.ndarray, centroids: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Bilinear samples of each frame on the canonical grid, `f GRID*GRID` float32; outside the frame is 0."""
    frames, height, width = alpha.shape
    steps = (np.arange(GRID) + 0.5) / GRID * 2 * EXTENT - EXTENT
    x = centroids[:, :1] + radii[:, None] * steps  # f g
    y = centroids[:, 1:] + radii[:, None] * steps
    padded = np.pad(alpha, ((0, 0), (1, 1), (1, 1)))
    left, right_share = _cell(x, width)
    top, bottom_share = _cell(y, height)
    index = np.arange(frames)[:, None, None]
    u, v = right_share[:, None, :], bottom_share[:, :, None]
    row, column = top[:, :, None], left[:, None, :]
    upper = padded[index, row, column] * (1 - u) + padded[index, row, column + 1] * u
    lower = padded[index, row + 1, column] * (1 - u) + padded[index, row + 1, column + 1] * u
    return (upper * (1 - v) + lower * v).reshape(frames, -1).astype(np.float32)


def _cell(position: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Index in the padded row of the pixel before a position, and the share of the one after it."""
    clipped = np.clip(position + 1.0, 0.0, length + 0.999)  # the padding puts pixel i at i + 1
    index = clipped.astype(int)
    return index, clipped - index


@functools.cache
def _templates(shape: str) -> Templates:
    """All templates of a shape, blurred by a Gaussian in the frequency domain."""
    fine = GRID * _OVERSAMPLING
    cell = 2 * EXTENT / fine
    steps = (np.arange(fine) + 0.5) * cell - EXTENT
    frequency = np.fft.fftfreq(fine, cell)
    half_frequency = np.fft.rfftfreq(fine, cell)
    squared_frequency = frequency[:, None] ** 2 + half_frequency[None, :] ** 2
    values = []
    for angle in angle_grid(SYMMETRY[shape]):
        cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        x = cosine * steps[None, :] + sine * steps[:, None]
        y = cosine * steps[:, None] - sine * steps[None, :]
        spectrum = np.fft.rfft2(np.clip(0.5 - signed_distance(shape, x, y, 1.0) / cell, 0.0, 1.0))
        for blur in BLURS:
            soft = np.fft.irfft2(spectrum * np.exp(-2 * (np.pi * blur) ** 2 * squared_frequency), s=(fine, fine))
            pooled = soft.reshape(GRID, _OVERSAMPLING, GRID, _OVERSAMPLING).mean(axis=(1, 3))
            values.append(pooled.ravel())
    stacked = np.array(values, dtype=np.float32)
    return Templates(stacked, np.einsum("tp,tp->t", stacked, stacked))


def angle_grid(symmetry: float) -> np.ndarray:
    """The angles in degrees that are compared: one for a circle, else every ANGLE_STEP up to the symmetry."""
    return np.arange(0.0, symmetry, ANGLE_STEP) if symmetry else np.zeros(1)


def _refine_angles(errors: np.ndarray, symmetry: float) -> np.ndarray:
    """Each frame's best angle, between grid points by the parabola through the least error and its neighbours."""
    frames, count = errors.shape
    if count == 1:
        return np.zeros(frames)
    best = errors.argmin(axis=1)
    index = np.arange(frames)
    before, here, after = errors[index, best - 1], errors[index, best], errors[index, (best + 1) % count]
    curvature = before - 2 * here + after
    shift = np.where(curvature > 0, 0.5 * (before - after) / np.where(curvature > 0, curvature, 1.0), 0.0)
    return ((best + np.clip(shift, -0.5, 0.5)) * ANGLE_STEP) % symmetry
