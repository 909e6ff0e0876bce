"""Scenes drawn as video: anti-aliased, at any size, frame rate and length up to the scene's own."""

from __future__ import annotations

import math

import numpy as np

from reelwright.shapes.geometry import pixel_centres
from reelwright.shapes.outlines import outline_distance
from reelwright.shapes.world import BACKGROUNDS, COLOURS, MovingObject, Scene
from reelwright.types import Size


def render(scene: Scene, size: Size, fps: float) -> np.ndarray:
    """The scene as uint8 `f h w c`; frame i shows the time i / fps.

    Edges are one pixel wide ramps of coverage, mixed in sRGB values. Arithmetic is float64, where differences between
    machines in the last bit do not reach a byte. ValueError if the video is longer than the scene.
    """
    if fps <= 0:
        raise ValueError(f"fps = {fps} must be positive")
    if size.frames / fps > scene.duration_seconds * (1 + 1e-9):
        raise ValueError(
            f"{size.frames} frames at fps = {fps} last longer than the scene's {scene.duration_seconds:g} s; "
            f"make scenes with duration_seconds = {size.frames / fps:g}"
        )
    seconds = np.arange(size.frames) / fps
    video = np.broadcast_to(np.array(BACKGROUNDS[scene.background], dtype=np.uint8), (*size.tuple, 3)).copy()
    for moving in scene.objects:
        _draw(video, moving, seconds)
    return video


def _draw(video: np.ndarray, moving: MovingObject, seconds: np.ndarray) -> None:
    """Paint one object over the video, in place; `seconds` are the frames' times."""
    _, height, width, _ = video.shape
    x, y = pixel_centres(height, width)
    shape, colour = moving.factors.shape, moving.factors.colour
    assert shape is not None and colour is not None, "a scene's object has a shape and a colour"
    colours = np.broadcast_to(np.array(COLOURS[colour]), (len(seconds), 3)).copy()
    if moving.factors.becomes is not None and moving.change_at is not None:
        colours[seconds >= moving.change_at] = COLOURS[moving.factors.becomes]
    seconds = own_time(moving, seconds)
    radius = (moving.radius + moving.growth * seconds)[:, None, None]
    angles = [math.radians(moving.angle + moving.spin * float(t)) for t in seconds]
    cosine = np.array([math.cos(a) for a in angles])[:, None, None]
    sine = np.array([math.sin(a) for a in angles])[:, None, None]
    across = x[None, None, :] - (moving.start[0] + moving.velocity[0] * seconds)[:, None, None]  # f 1 w
    along = y[None, :, None] - (moving.start[1] + moving.velocity[1] * seconds)[:, None, None]  # f h 1
    turned_x = cosine * across + sine * along  # f h w
    turned_y = cosine * along - sine * across  # f h w
    distance = outline_distance(shape, turned_x, turned_y, radius)
    coverage = np.clip(0.5 - distance * min(height, width), 0.0, 1.0)  # f h w
    coverage[seconds < 0] = 0.0  # it has not appeared yet
    touched = np.nonzero(coverage)
    amount = coverage[touched][:, None]
    below = video[touched]
    video[touched] = np.rint(below + amount * (colours[touched[0]] - below.astype(np.float64))).astype(np.uint8)


def own_time(moving: MovingObject, seconds: np.ndarray) -> np.ndarray:
    """The object's own time at each time of the clip; negative before it appears."""
    change, at = moving.factors.change, moving.change_at
    if change is None or at is None:
        return seconds
    if change == "bounces":
        return np.where(seconds <= at, seconds, 2 * at - seconds)
    if change == "stops":
        return np.minimum(seconds, at)
    return seconds - at if change == "appears" else seconds
