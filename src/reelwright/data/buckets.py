"""(frames, height, width) buckets: which clip goes where, which windows of it are used, and in which order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from reelwright.data.config import DataConfig
from reelwright.data.decode import VideoInfo
from reelwright.randomness import keyed_generator
from reelwright.types import Clip, Size


def playable_span(info: VideoInfo, clip: Clip | None = None) -> tuple[float, float]:
    """(start, end) in seconds after the first timestamp: the times a window's frames may be asked for.

    Up to half a frame interval after the last timestamp the last frame is still the nearest one.
    """
    start, end = 0.0, float(info.timestamps[-1]) - info.first_seconds
    if clip is not None and clip.start_seconds is not None:
        start = max(start, clip.start_seconds)
    if clip is not None and clip.end_seconds is not None:
        end = min(end, clip.end_seconds)
    return start, end + info.frame_seconds / 2


def assign(info: VideoInfo, config: DataConfig, clip: Clip | None = None) -> Size | str:
    """The bucket of a clip, or the reason why it fits none.

    Of the buckets it can fill: the longest, then the nearest aspect ratio (as a ratio of ratios), then the largest
    that does not enlarge it, then the smallest.
    """
    start, end = playable_span(info, clip)
    fitting = [size for size in config.sizes if start + (size.frames - 1) / config.fps <= end + 1e-6]
    if not fitting:
        shortest = min(size.frames for size in config.sizes)
        there = max(0, 1 + math.floor((end - start + 1e-6) * config.fps)) if end >= start else 0
        return f"too short: {there} frames at {config.fps:g} fps, the smallest bucket needs {shortest}"
    return min(fitting, key=lambda size: _preference(size, info))


def _preference(size: Size, info: VideoInfo) -> tuple[float, ...]:
    misfit = abs(math.log((size.width / size.height) / (info.width / info.height)))
    area, enlarges = size.height * size.width, size.height > info.height or size.width > info.width
    return (-size.frames, round(misfit, 9), enlarges, area if enlarges else -area)


def window_starts(info: VideoInfo, size: Size, config: DataConfig, clip: Clip | None = None) -> tuple[float, ...]:
    """Start times of a clip's windows in seconds after its first timestamp, ascending.

    `head`: at the start. `middle`: as much before as after. `uniform`: `windows` of them spread evenly from start to
    end (one: the middle); fewer where they would lie closer together than one frame of the sample.
    """
    start, end = playable_span(info, clip)
    slack = max(0.0, end - info.frame_seconds / 2 - start - (size.frames - 1) / config.fps)
    if config.window == "head":
        return (start,)
    count = min(config.windows, 1 + math.floor(slack * config.fps + 1e-6)) if config.window == "uniform" else 1
    if count == 1:
        return (start + slack / 2,)
    return tuple(start + slack * k / (count - 1) for k in range(count))


class BucketSampler:
    """Which samples make the batch of a step: a pure function of (seed, step).

    Every bucket is an endless stream of epochs, each epoch all its samples once, in an order keyed by (seed, epoch,
    bucket). A batch is the next `batch_size` samples of one bucket's stream, so batches are always full, nothing is
    dropped, and a batch may hold the end of one epoch and the start of the next. The bucket of a step follows
    Tijdeman's rule (The chairman assignment problem, 1980): after any number of steps every bucket has had its
    share in proportion to its size, less than one batch more or less.
    """

    def __init__(self, buckets: Mapping[Size, Sequence[int]], batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: at least 1")
        self.batch_size, self.seed = batch_size, seed
        self._buckets = {size: tuple(items) for size, items in sorted(buckets.items()) if items}
        if not self._buckets:
            raise ValueError("no samples to draw from: every bucket is empty")
        self._sizes = list(self._buckets)
        counts = [len(items) for items in self._buckets.values()]
        divisor = math.gcd(*counts)
        self._weights = [count // divisor for count in counts]
        self._period = sum(self._weights)  # after so many steps the schedule starts again
        self._step, self._served = 0, [0] * len(counts)  # batches each bucket had in the first `_step` steps
        self._orders: dict[tuple[Size, int], list[int]] = {}

    @property
    def num_samples(self) -> int:
        return sum(len(items) for items in self._buckets.values())

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which as many samples are drawn as there are, rounded up."""
        return -(-self.num_samples // self.batch_size)

    def batch(self, step: int) -> tuple[Size, tuple[tuple[int, int], ...]]:
        """(bucket, ((sample index, epoch of its bucket), ...)) of a step >= 0."""
        if step < 0:
            raise ValueError(f"step = {step}: steps count from 0")
        which, earlier = self._scheduled(step)
        size = self._sizes[which]
        items = self._buckets[size]
        first = earlier * self.batch_size
        places = (divmod(place, len(items)) for place in range(first, first + self.batch_size))
        return size, tuple((items[self._order(size, epoch)[at]], epoch) for epoch, at in places)

    def _scheduled(self, step: int) -> tuple[int, int]:
        """(bucket of a step, batches that bucket had before it)."""
        rounds, step = divmod(step, self._period)
        if step < self._step:
            self._step, self._served = 0, [0] * len(self._weights)
        while self._step < step:
            self._served[self._next()] += 1
            self._step += 1
        which = self._next()
        return which, rounds * self._weights[which] + self._served[which]

    def _next(self) -> int:
        """Tijdeman's choice for step `_step`, in integers: of the buckets that may be served, the most urgent."""
        number = len(self._weights)
        if number == 1:
            return 0
        half = 2 * number - 2
        best, choice = None, 0
        for i, (weight, served) in enumerate(zip(self._weights, self._served, strict=True)):
            lag = weight * (self._step + 1) - served * self._period  # how far behind, in batches times the period
            if half * lag < self._period:
                continue
            left = ((half - 1) * self._period - half * lag) / weight  # time until it would be too far behind
            if best is None or left < best:
                best, choice = left, i
        assert best is not None, "Tijdeman's rule always finds a bucket"
        return choice

    def _order(self, size: Size, epoch: int) -> list[int]:
        """The permutation of one epoch of a bucket; only the last few are kept."""
        order = self._orders.get((size, epoch))
        if order is None:
            generator = keyed_generator(self.seed, epoch, str(size), "order")
            order = torch.randperm(len(self._buckets[size]), generator=generator).tolist()
            for old in [key for key in self._orders if key[0] == size and key[1] < epoch - 1]:
                del self._orders[old]
            if len(self._orders) > 4 * len(self._sizes):  # steps asked for out of order
                self._orders.clear()
            self._orders[size, epoch] = order
        return order
