"""`data.buckets: auto`: the (frames, height, width) buckets that suit the lengths and aspect ratios of a collection."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice

from reelwright.data.config import DataConfig
from reelwright.types import Size

WIDEST = 3.0  # aspect ratios from 1:3 to 3:1 have shapes of their own; a clip beyond is cropped to the nearest
AREA_MISFIT = 1.25  # a shape's area is at most this many times larger or smaller than `height * width`
LONGER = 32  # frames beyond twice `frames` in which a length that fits is looked for, to name it
RARE = 0.05  # a shape that suits a smaller share of the clips best is left out, and they go to the next nearest

Bucket = tuple[int, int, int]
Fits = Callable[[Size], bool]  # whether codec and model take videos of a size


def auto_buckets(clips: Iterable[tuple[int, int, int]], config: DataConfig, fits: Fits | None = None) -> list[Bucket]:
    """Buckets for clips of (frames a window can have, height, width), the longest and then the fullest first.

    Lengths are `data.frames` and what is left by halving it again and again, each the longest up to it that fits;
    shapes have about the area of `data.height` x `data.width` and sides that are multiples of `data.bucket_multiple`.
    Only those that suit some clip are kept. The order of the clips plays no part. ValueError where no size fits the
    codec and the model.
    """
    fits = fits or (lambda _: True)
    shapes = next((found for frames in range(config.frames, 0, -1) if (found := _shapes(config, frames, fits))), None)
    if shapes is None:
        raise ValueError(f"buckets = auto: {_why_none(config, fits)}")
    lengths = _lengths(config.frames, lambda frames: fits(Size(frames, *shapes[0])))
    usable = Counter(clip for clip in clips if clip[0] >= lengths[-1])
    kept = _common(usable, shapes)
    votes: Counter[Bucket] = Counter()
    for (there, height, width), number in usable.items():
        longest = next(length for length in lengths if length <= there)
        votes[longest, *_nearest(width / height, kept)] += number
    if not votes:
        return [(lengths[0], *shapes[0])]
    return sorted(votes, key=lambda bucket: (-bucket[0], -votes[bucket], bucket))


def _lengths(frames: int, fits: Callable[[int], bool]) -> list[int]:
    """`frames`, then the longest that fits of half of it, a quarter, ...: descending. 17 gives 17, 9, 5, 3, 2, 1."""
    lengths: list[int] = []
    halving = 0
    while True:
        most = 1 + (frames - 1) // 2**halving
        found = next((length for length in range(most, 0, -1) if fits(length)), None)
        if found is None:
            return lengths or [frames]
        if not lengths or found < lengths[-1]:
            lengths.append(found)
        if most == 1:
            return lengths
        halving += 1


def _why_none(config: DataConfig, fits: Fits) -> str:
    """Which setting leaves no size, and the way out."""
    longer = (
        frames for frames in range(config.frames + 1, 2 * config.frames + LONGER) if _shapes(config, frames, fits)
    )
    found = list(islice(longer, 3))
    if found:
        return (
            f"no length up to frames = {config.frames} fits the codec and the model; "
            f"{', '.join(map(str, found))} would: set data.frames"
        )
    return (
        f"no height and width near {config.height}x{config.width} in multiples of "
        f"bucket_multiple = {config.bucket_multiple} fits the codec and the model; set another bucket_multiple"
    )


def _shapes(config: DataConfig, frames: int, fits: Fits) -> list[tuple[int, int]]:
    """(height, width) that may become buckets of a length, the one nearest to the recipe's own first."""
    area, multiple = config.height * config.width, config.bucket_multiple
    shapes = set()
    for height in range(multiple, math.isqrt(round(area * WIDEST)) + multiple, multiple):
        width = max(1, round(area / height / multiple)) * multiple
        near = max(height * width / area, area / (height * width)) <= AREA_MISFIT
        if near and 1 / WIDEST <= width / height <= WIDEST and fits(Size(frames, height, width)):
            shapes.add((height, width))
    own = (config.height, config.width)
    if config.height % multiple == 0 and config.width % multiple == 0 and fits(Size(frames, *own)):
        shapes.add(own)
    return sorted(shapes, key=lambda shape: (shape != own, _misfit(config.width / config.height, shape), shape))


def _common(clips: Counter[tuple[int, int, int]], shapes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The shapes that suit enough of the clips best; at least the one that suits most."""
    votes: Counter[tuple[int, int]] = Counter()
    for (_, height, width), number in clips.items():
        votes[_nearest(width / height, shapes)] += number
    if not votes:
        return shapes[:1]
    enough = min(RARE * votes.total(), max(votes.values()))
    return [shape for shape in shapes if votes[shape] and votes[shape] >= enough]


def _nearest(aspect: float, shapes: list[tuple[int, int]]) -> tuple[int, int]:
    return min(shapes, key=lambda shape: (_misfit(aspect, shape), shape))


def _misfit(aspect: float, shape: tuple[int, int]) -> float:
    """How far apart two aspect ratios are, as a ratio of ratios; rounded, so that a tie is one on every machine."""
    return round(abs(math.log(aspect * shape[0] / shape[1])), 9)
