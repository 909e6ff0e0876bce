"""Videos to be measured."""

from __future__ import annotations

import numpy as np


def make_videos(count: int, seed: int, frames: int = 4, side: int = 24) -> list[np.ndarray]:
    """Blocks of colour that slide by a pixel a frame."""
    random = np.random.default_rng(seed)
    videos = []
    for _ in range(count):
        picture = np.kron(random.integers(0, 256, (6, 6, 3)), np.ones((side // 6, side // 6, 1))).astype(np.uint8)
        videos.append(np.stack([np.roll(picture, shift, axis=1) for shift in range(frames)]))
    return videos
