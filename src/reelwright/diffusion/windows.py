"""Videos longer than a network takes at once: overlapping windows of latents, their predictions blended at every step.

All windows read the same x_t and what they predict is averaged where they overlap, so that every step of a sampler
makes them agree: MultiDiffusion (Bar-Tal et al. 2023, arXiv 2302.08113) along time, as Gen-L-Video (Wang et al. 2023,
arXiv 2305.18264) has it. Only one window's activations are in memory; what grows with a video are its latents.

Windows that have no frame in common share nothing but what they begin from: FreeNoise (Qiu et al. 2023, arXiv
2310.15169) therefore repeats the first window's noise, with the frames of each stride in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from reelwright.randomness import keyed_generator
from reelwright.types import Denoiser, Text

Tell = Callable[[tuple[int, int] | None], None]


def window_starts(count: int, size: int, overlap: int) -> tuple[int, ...]:
    """First frames of windows of `size` that cover `count` frames, each `size - overlap` behind the one before.

    The last one ends with the video, so that it may have more in common with the one before it. ValueError where
    windows would not advance.
    """
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(f"windows of {size} frames that overlap by {overlap}: the overlap is less than the window")
    last = max(0, count - size)
    return (*range(0, last, size - overlap), last)


def window_weights(count: int, starts: tuple[int, ...], size: int, overlap: int) -> Tensor:
    """The share of each window in each of its frames, `windows size` float32.

    It rises linearly over the overlap and falls again; all shares of a frame add up to 1. A frame that only one window
    covers has exactly 1.
    """
    place = torch.arange(min(size, count))
    ramp = torch.minimum(place + 1, min(size, count) - place).clamp(max=overlap + 1).double()
    total = torch.zeros(count, dtype=torch.float64)
    for start in starts:
        total[start : start + size] += ramp
    return torch.stack([ramp / total[start : start + size] for start in starts]).float()


def in_windows(denoiser: Denoiser, size: int, overlap: int, tell: Tell = lambda _: None) -> Denoiser:
    """The denoiser for x_t `b c f h w` of any f, called on windows of `size` frames; as it is where f <= size.

    `tell((first frame, f))` goes before each window and `tell(None)` behind it: a network that knows where in a
    clip a frame stands would begin and end it in every window otherwise.
    """

    def predict(x_t: Tensor, t: Tensor, cond: Text) -> Tensor:
        count = x_t.shape[2]
        starts = window_starts(count, size, overlap)
        if len(starts) == 1:
            return denoiser(x_t, t, cond)
        blended: Tensor | None = None
        for start, shares in zip(starts, window_weights(count, starts, size, overlap), strict=True):
            part = slice(start, start + size)
            own = cond if cond.image is None else replace(cond, image=cond.image[:, :, part])
            tell((start, count))
            try:
                prediction = denoiser(x_t[:, :, part].contiguous(), t, own)  # b c size h w
            finally:
                tell(None)
            if blended is None:
                blended = prediction.new_zeros(*prediction.shape[:2], count, *prediction.shape[3:])
            blended[:, :, part] += shares.to(prediction)[:, None, None] * prediction
        assert blended is not None
        return blended  # b c f h w

    return predict


def repeated_noise(noise: Tensor, size: int, overlap: int, seed: int) -> Tensor:
    """Noise `c f h w` whose frames behind the first window are those of a stride in it, in an order of their own.

    Each stride of `size - overlap` frames takes what stands `size` frames before it; its marginals stay standard
    normal. Noise no longer than a window is as it was.
    """
    count, stride = noise.shape[1], size - overlap
    order = list(range(min(size, count)))
    while len(order) < count:
        before = order[len(order) - size : len(order) - size + stride]
        shuffled = torch.randperm(len(before), generator=keyed_generator(seed, "window noise", len(order)))
        order += [before[place] for place in shuffled.tolist()]
    return noise[:, order[:count]]
