"""How the videos of each track are read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from reelwright.shapes.checker import Reading, read
from reelwright.shapes.checker_changes import read_change
from reelwright.shapes.checker_objects import SceneReading, read_objects
from reelwright.shapes.checker_words import read_graded, read_with_lines
from reelwright.shapes.world import find_track

Reader = Callable[[np.ndarray, float], Reading | SceneReading]  # uint8 f h w c, frames a second

READERS: dict[str, Reader] = {
    "one": read,
    "two": read_objects,
    "change": read_change,
    "graded": read_graded,
    "named": read_with_lines,
}


def reader_of(track: str) -> Reader:
    """The reader of a track's videos."""
    return READERS[find_track(track).kind]
