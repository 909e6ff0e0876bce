"""How a video changes from frame to frame: how much moves, and how much of the change its motion explains.

None of these figures means anything alone: a frozen clip is perfectly consistent and warps without error, and noise is
full of motion. They are made for one table, with the dynamic degree beside the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reelwright.metrics.flow import gaussian_blur, luma, optical_flow, visible, warp

LARGEST_SIDE = 128  # pixels of the shorter side: larger frames are shrunk to it first
REFERENCE_SIDE = 256  # flow is given in pixels of frames whose shorter side is this, whatever their size
FASTEST_SHARE = 0.05  # of a frame's pixels
MOVING_PIXELS = 0.3  # a frame, at REFERENCE_SIDE: from here on a pair of frames counts as moving
MOVING_SHARE = 0.25  # of the pairs must move for the clip to count as one that moves
MOST_PAIRS = 32  # of a video, evenly spaced: flow is the dear part
PAIRS_AT_ONCE = 16

SSIM_SIGMA, SSIM_C1, SSIM_C2 = 1.5, 0.01**2, 0.03**2  # Wang et al. 2004, section III-C, for luma in [0, 1]


@dataclass(frozen=True)
class Motion:
    """What the flow between consecutive frames says of one video.

    dynamic_degree   mean magnitude of the fastest 5 % of each pair's flow vectors, in pixels a frame at a shorter side
                     of 256; those the backward flow does not confirm count as 0. After VBench (Huang et al. 2024),
                     which takes RAFT's flow and calls a clip dynamic from 6 pixels on; here the magnitude is printed,
                     and a clip moves from 0.3 pixels on, in a quarter of its pairs
    moves            whether it counts as moving by that rule
    warping_error    squared RGB difference (values in [0, 1], summed over the channels) between a frame and the next
                     one warped back to it, mean over pixels seen in both and then over pairs (Lai et al. 2018, eq. 8
                     and 9); None where no pair has a pixel that both frames surely show
    unexplained      that error as a share of the same pixels' difference without warping: 0 where motion explains all
                     change, 1 and more where it explains none; None where nothing changes
    """

    dynamic_degree: float
    moves: bool
    warping_error: float | None
    unexplained: float | None


def measure_motion(video: np.ndarray, device: torch.device | str = "cpu") -> Motion:
    """Flow figures of uint8 `f h w c`, of at most 32 pairs of consecutive frames. ValueError for a single frame."""
    frames = _shrunk(_as_tensor(video).to(device))  # f 3 h w
    gray = luma(frames.permute(0, 2, 3, 1))  # f h w
    scale = REFERENCE_SIDE / min(frames.shape[2:])
    speeds, errors, differences = [], [], []
    pairs = len(frames) - 1
    for at in torch.linspace(0, pairs - 1, min(pairs, MOST_PAIRS)).round().long().split(PAIRS_AT_ONCE):
        first, second = gray[at], gray[at + 1]
        forward = optical_flow(first, second)
        seen = visible(forward, optical_flow(second, first))  # n h w
        lengths = (forward.norm(dim=1) * seen).flatten(1)  # n h*w; a vector that is not confirmed is not believed
        count = max(1, round(FASTEST_SHARE * lengths.shape[1]))
        speeds += (lengths.topk(count, dim=1).values.mean(dim=1) * scale).tolist()
        now, after = frames[at], frames[at + 1]
        errors += _seen_mean((now - warp(after, forward)).square().sum(dim=1), seen)
        differences += _seen_mean((now - after).square().sum(dim=1), seen)
    moving = np.mean(np.array(speeds) >= MOVING_PIXELS)
    left, change = np.nansum(errors), np.nansum(differences)
    return Motion(
        dynamic_degree=float(np.mean(speeds)),
        moves=bool(moving >= MOVING_SHARE),
        warping_error=None if np.isnan(errors).all() else float(np.nanmean(errors)),
        unexplained=float(left / change) if change > 0 else None,
    )


def _seen_mean(values: Tensor, seen: Tensor) -> list[float]:
    """Mean of `n h w` over the pixels seen, pair by pair; NaN where there is none."""
    total, count = (values * seen).flatten(1).sum(dim=1), seen.flatten(1).sum(dim=1)
    return (total / count).tolist()


def feature_consistency(features: Tensor) -> float:
    """Mean cosine of consecutive frames' feature vectors `f d`."""
    if len(features) < 2:
        raise ValueError(f"{len(features)} frames: consistency needs at least two")
    return float(F.cosine_similarity(features[:-1].double(), features[1:].double(), dim=1).mean())


def luma_consistency(video: np.ndarray, device: torch.device | str = "cpu") -> float:
    """Mean SSIM of the brightness of consecutive frames of uint8 `f h w c`."""
    gray = luma(_shrunk(_as_tensor(video).to(device)).permute(0, 2, 3, 1))
    return float(ssim(gray[:-1], gray[1:]).double().mean())


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of brightness images `n h w` in [0, 1] -> `n` (Wang et al. 2004, eq. 13).

    Gaussian window of sigma 1.5; near the rim the rim's pixels stand in for those beyond it.
    """

    def mean(x: Tensor) -> Tensor:
        return gaussian_blur(x[:, None].double(), SSIM_SIGMA)[:, 0]

    mean_a, mean_b = mean(a), mean(b)
    # rounding can leave a variance a little below zero
    variance_a = (mean(a.double() ** 2) - mean_a**2).clamp_min(0)
    variance_b = (mean(b.double() ** 2) - mean_b**2).clamp_min(0)
    covariance = mean(a.double() * b.double()) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + SSIM_C1) * (2 * covariance + SSIM_C2)
    scale = (mean_a**2 + mean_b**2 + SSIM_C1) * (variance_a + variance_b + SSIM_C2)
    return (likeness / scale).flatten(1).mean(dim=1)


def _as_tensor(video: np.ndarray) -> Tensor:
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or len(video) < 2:
        raise ValueError(f"a video of {video.dtype} {video.shape}: it must be uint8 'f h w 3' of at least two frames")
    return torch.from_numpy(np.ascontiguousarray(video)).permute(0, 3, 1, 2).float() / 255


def _shrunk(frames: Tensor) -> Tensor:
    """Float `f 3 h w` whose shorter side is at most LARGEST_SIDE, by area averaging."""
    height, width = frames.shape[2:]
    if min(height, width) <= LARGEST_SIDE:
        return frames
    ratio = LARGEST_SIDE / min(height, width)
    return F.interpolate(frames, size=(round(height * ratio), round(width * ratio)), mode="area")
