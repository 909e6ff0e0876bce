"""Outlines of the shapes as signed distances, shared by the renderer and the checker's templates.

Every shape is made of half-planes or a circle, scaled so that radius r gives the area pi r^2, with its centroid at
the origin. The distance to a polygon is the largest distance to its edges' lines: exact inside and beside an edge,
smaller than Euclid's beyond a corner, which keeps corners sharp under anti-aliasing.
"""

from __future__ import annotations

import math

import numpy as np

# Each shape's measure at radius 1, from setting its area to pi.
SQUARE_HALF = math.sqrt(math.pi) / 2  # (2a)^2
TRIANGLE_INRADIUS = math.sqrt(math.pi / (3 * math.sqrt(3)))  # 3 sqrt(3) a^2, equilateral, the apex up
DIAMOND_ASPECT = 0.65  # width over height: no turn of a square looks like it
DIAMOND_HALF_HEIGHT = math.sqrt(math.pi / (2 * DIAMOND_ASPECT))  # 2 * aspect * a^2
CROSS_ASPECT = 1 / 3  # an arm's width over the cross's
CROSS_HALF = math.sqrt(math.pi / (4 * (2 * CROSS_ASPECT - CROSS_ASPECT**2)))

# The angle in degrees after which a shape looks the same; 0 where every angle does.
SYMMETRY = {"circle": 0.0, "square": 90.0, "triangle": 120.0, "diamond": 180.0, "cross": 90.0}


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """Distance to the outline, negative inside, of points (x, y) relative to the upright shape's centroid.

    x, y and radius broadcast together; the result has their unit.
    """
    if shape == "circle":
        return np.sqrt(x * x + y * y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - SQUARE_HALF * radius
    if shape == "triangle":
        slope = np.abs(x) * (math.sqrt(3) / 2) - y * 0.5
        return np.maximum(slope, y) - TRIANGLE_INRADIUS * radius
    if shape == "diamond":
        norm = math.hypot(1.0, DIAMOND_ASPECT)
        edge = (np.abs(x) + np.abs(y) * DIAMOND_ASPECT) / norm
        return edge - DIAMOND_HALF_HEIGHT * DIAMOND_ASPECT / norm * radius
    if shape == "cross":
        across, along = np.abs(x), np.abs(y)
        half, arm = CROSS_HALF * radius, CROSS_HALF * CROSS_ASPECT * radius
        return np.minimum(np.maximum(across - half, along - arm), np.maximum(across - arm, along - half))
    raise ValueError(f"shape = {shape!r} is not known; use one of {', '.join(SYMMETRY)}")


def extents(shape: str, turning: bool) -> tuple[float, float, float, float]:
    """How far a shape of radius 1 reaches from its centroid: left, right, up, down; at every angle if `turning`."""
    wide, high = DIAMOND_HALF_HEIGHT * DIAMOND_ASPECT, DIAMOND_HALF_HEIGHT
    side, apex = math.sqrt(3) * TRIANGLE_INRADIUS, 2 * TRIANGLE_INRADIUS
    upright, corner = {
        "circle": ((1.0, 1.0, 1.0, 1.0), 1.0),
        "square": ((SQUARE_HALF, SQUARE_HALF, SQUARE_HALF, SQUARE_HALF), SQUARE_HALF * math.sqrt(2)),
        "triangle": ((side, side, apex, TRIANGLE_INRADIUS), apex),
        "diamond": ((wide, wide, high, high), high),
        "cross": ((CROSS_HALF, CROSS_HALF, CROSS_HALF, CROSS_HALF), CROSS_HALF * math.hypot(1.0, CROSS_ASPECT)),
    }[shape]
    return (corner, corner, corner, corner) if turning else upright


def pixel_centres(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """World coordinates of the pixel centres: x `w` and y `h`."""
    side = min(height, width)
    x = (np.arange(width) + 0.5 - width / 2) / side + 0.5
    y = (np.arange(height) + 0.5 - height / 2) / side + 0.5
    return x, y
