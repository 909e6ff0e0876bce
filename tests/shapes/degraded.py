"""Videos as codecs and models spoil them, and how many of them are still read right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from reelwright.shapes.controls import CONTROLS
from reelwright.shapes.scores import is_right
from reelwright.shapes.tracks import Reader
from reelwright.shapes.world import Prompt

FPS = 8.0
EVERY_CONTROL = [  # one of them in `make test`
    pytest.param(name, marks=() if name == "frozen" else pytest.mark.full) for name in CONTROLS
]


def degraded(video: np.ndarray, blur: float = 0.0, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Blur of a standard deviation in pixels, then Gaussian noise in grey levels."""
    values = gaussian_filter(video.astype(np.float64), (0, blur, blur, 0), mode="nearest")
    values += np.random.default_rng(seed).normal(0.0, noise, video.shape) if noise else 0.0
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def share_right(
    prompts: Sequence[Prompt],
    videos: Sequence[np.ndarray],
    reader: Reader,
    change: Callable[[np.ndarray], np.ndarray] = lambda video: video,
) -> float:
    pairs = zip(prompts, videos, strict=True)
    return float(np.mean([is_right(p, reader(change(v), FPS)) for p, v in pairs]))


def clouds(trials: int) -> list[np.ndarray]:
    """What untrained models make: clouds, stripes, stains, half a background; of any size and length."""
    rng = np.random.default_rng(0)
    videos = []
    for _ in range(trials):
        frames, height, width = int(rng.integers(4, 12)), int(rng.integers(16, 50)), int(rng.integers(16, 50))
        scale = (rng.choice([0, 1, 9]), rng.choice([0, 1, 4]), rng.choice([0, 1, 4]), 0)
        cloud = gaussian_filter(rng.normal(size=(frames, height, width, 3)), scale)
        video = 128 + cloud / cloud.std() * rng.choice([3, 15, 40, 90])
        margin = int(rng.integers(0, 6))
        inside = np.zeros((height, width), dtype=bool)
        inside[margin : height - margin, margin : width - margin] = True
        video[:, ~inside] = 128
        videos.append(np.clip(video, 0, 255).astype(np.uint8))
    return videos
