"""How far each pixel is from its frame's background, for the readers of two objects and of changes.

Part of the frozen checker: see `frozen.py` before changing anything here.
"""

from __future__ import annotations

import numpy as np


def border_colour(video: np.ndarray) -> np.ndarray:
    """Median colour of each frame's border, `f 3`, of a `f h w c` video."""
    border = max(1, min(video.shape[1:3]) // 32)
    ring = np.ones(video.shape[1:3], dtype=bool)
    ring[border:-border, border:-border] = False
    return np.median(video[:, ring], axis=1)


def distance_from_border(video: np.ndarray) -> np.ndarray:
    """RGB distance of every pixel from its frame's border colour, `f h w`."""
    background = border_colour(video).astype(np.float32)
    return np.linalg.norm(video.astype(np.float32) - background[:, None, None], axis=3)
