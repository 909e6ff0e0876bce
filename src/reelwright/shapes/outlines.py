"""Outlines of all shapes: those of `geometry.py`, which the frozen checker knows, and the line of the named clips."""

from __future__ import annotations

import math

import numpy as np

from reelwright.shapes import geometry
from reelwright.shapes.world import LINE

LINE_ASPECT = 6.0  # length over width
LINE_HALF_WIDTH = math.sqrt(math.pi / (4 * LINE_ASPECT))  # at radius 1: 4 * aspect * a^2 = pi
LINE_HALF_LENGTH = LINE_ASPECT * LINE_HALF_WIDTH


def outline_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """`geometry.signed_distance`, of a line as well; it lies flat at angle 0."""
    if shape != LINE:
        return geometry.signed_distance(shape, x, y, radius)
    return np.maximum(np.abs(x) - LINE_HALF_LENGTH * radius, np.abs(y) - LINE_HALF_WIDTH * radius)


def extents(shape: str, turning: bool) -> tuple[float, float, float, float]:
    """`geometry.extents`, of a line as well: left, right, up, down at radius 1; at every angle if `turning`."""
    if shape != LINE:
        return geometry.extents(shape, turning)
    along, across = LINE_HALF_LENGTH, LINE_HALF_WIDTH
    corner = math.hypot(along, across)
    return (corner, corner, corner, corner) if turning else (along, along, across, across)
