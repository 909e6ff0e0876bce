"""(frames, height, width) buckets: which clip goes where, which windows of it are used, and in which order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from reelwright.data.config import DataConfig
from reelwright.data.decode import VideoInfo
from reelwright.randomness import keyed_generator
from reelwright.types import Clip, Size

_SLACK = 1e-6  # seconds: sums of times are compared with this much patience


class Span(NamedTuple):
    """Times a window's frames may be asked for, in seconds after the first timestamp."""

    start: float
    end: float  # up to half a frame after the last frame, which is still the nearest one there


class Place(NamedTuple):
    """Where a window lies in its clip, in seconds after the first timestamp."""

    start_seconds: float
    end_seconds: float | None  # spread: when the last frame's time is over; None: frames follow `data.fps`
    span: Span  # the part of the clip the window may not leave: one scene, where cuts were looked for


def playable_span(info: VideoInfo, clip: Clip | None = None) -> Span:
    """The times of a clip's frames; of a part of a film, those shown before its end.

    Up to half a frame interval after the last timestamp the last frame is still the nearest one.
    """
    start, times = 0.0, info.timestamps - info.first_seconds
    if clip is not None and clip.start_seconds is not None:
        start = max(start, clip.start_seconds)
    if clip is not None and clip.end_seconds is not None:
        following = max(1, int(np.searchsorted(times, clip.end_seconds - _SLACK)))
        if following < len(times):
            return Span(start, _last_time_before(info, following))
    return Span(start, float(times[-1]) + info.frame_seconds / 2)


def _last_time_before(info: VideoInfo, number: int) -> float:
    """The last time at which frame `number` is not yet the nearest one, nor equally near: of the frame before it."""
    last, following = (float(time) - info.first_seconds for time in info.timestamps[number - 1 : number + 1])
    return last + max(0.0, min(info.frame_seconds, following - last) / 2 - 2 * _SLACK)


def scene_spans(info: VideoInfo, clip: Clip | None = None, cuts: Sequence[float] = ()) -> tuple[Span, ...]:
    """The parts of `playable_span` between cuts, ascending; the nearest frame to any time in a part is of its scene.

    cuts: seconds after the first timestamp at which the first frame of a new scene is shown.
    """
    start, end = playable_span(info, clip)
    times = info.timestamps - info.first_seconds
    spans = []
    for cut in sorted(cuts):
        number = int(np.searchsorted(times, cut - _SLACK))  # of the new scene's first frame
        if not 0 < number < len(times):
            continue
        spans.append(Span(start, min(end, _last_time_before(info, number))))
        start = max(start, float(times[number]))
    spans.append(Span(start, end))
    return tuple(span for span in spans if span.start <= span.end)


def frames_in(info: VideoInfo, span: Span, config: DataConfig) -> int:
    """How many frames a window in this part of a clip can have."""
    if config.window == "spread":
        first, after = _frames_of(info, span)
        return after - first
    return max(0, 1 + math.floor((span.end - span.start + _SLACK) * config.fps))


def _frames_of(info: VideoInfo, span: Span) -> tuple[int, int]:
    """(first, one after the last) of the frames shown in a part of a clip."""
    times = info.timestamps - info.first_seconds
    first, after = np.searchsorted(times, [span.start - _SLACK, span.end + _SLACK])
    return int(first), int(after)


def assign(info: VideoInfo, config: DataConfig, clip: Clip | None = None, cuts: Sequence[float] = ()) -> Size | str:
    """The bucket of a clip, or the reason why it fits none.

    Of the buckets it can fill: the longest, then the nearest aspect ratio (as a ratio of ratios), then the largest
    that does not enlarge it, then the smallest.
    """
    spans = scene_spans(info, clip, cuts)
    there = max((frames_in(info, span, config) for span in spans), default=0)
    fitting = [size for size in config.sizes if size.frames <= there]
    if not fitting:
        shortest = min(size.frames for size in config.sizes)
        where = f"its longest scene has {there}" if cuts else str(there)
        rate = "" if config.window == "spread" else f" at {config.fps:g} fps"
        return f"too short: {where} frames{rate}, the smallest bucket needs {shortest}"
    return min(fitting, key=lambda size: _preference(size, info))


def _preference(size: Size, info: VideoInfo) -> tuple[float, ...]:
    misfit = abs(math.log((size.width / size.height) / (info.width / info.height)))
    area, enlarges = size.height * size.width, size.height > info.height or size.width > info.width
    return (-size.frames, round(misfit, 9), enlarges, area if enlarges else -area)


def window_places(
    info: VideoInfo, size: Size, config: DataConfig, clip: Clip | None = None, cuts: Sequence[float] = ()
) -> tuple[Place, ...]:
    """Where a clip's windows lie, ascending. None of them holds a cut; scenes too short for a window are passed over.

    `head`: at the start of the first scene. `middle`: in the middle of the longest one. `uniform`: `windows` of them
    spread evenly over all scenes from start to end (one: the middle); fewer where they would lie closer together than
    one frame of the sample. `spread`: one from the first to the last frame of the longest scene.
    """
    fitting = [span for span in scene_spans(info, clip, cuts) if frames_in(info, span, config) >= size.frames]
    longest = max(fitting, key=lambda span: span.end - span.start)
    if config.window == "spread":
        after = _frames_of(info, longest)[1]
        times = np.append(info.timestamps, info.timestamps[-1] + (info.frame_seconds or 1.0)) - info.first_seconds
        return (Place(longest.start, float(times[after]), longest),)
    if config.window == "head":
        return (Place(fitting[0].start, None, fitting[0]),)
    if config.window == "middle":
        fitting = [longest]
    needed = (size.frames - 1) / config.fps + info.frame_seconds / 2
    slacks = [max(0.0, span.end - span.start - needed) for span in fitting]
    step = 1 / config.fps  # from a scene's last window to the first of the next one, on the line of all windows
    room = sum(slacks) + step * (len(fitting) - 1)
    count = min(config.windows, 1 + math.floor(room * config.fps + _SLACK))
    wanted = [room / 2] if count == 1 else [room * k / (count - 1) for k in range(count)]
    return tuple(_place_at(at, fitting, slacks, step) for at in wanted)


def _place_at(at: float, spans: Sequence[Span], slacks: Sequence[float], step: float) -> Place:
    """The window `at` seconds along all windows of these scenes laid end to end."""
    for span, slack in zip(spans[:-1], slacks[:-1], strict=True):
        if at < slack + step / 2:
            return Place(span.start + min(at, slack), None, span)
        at = max(0.0, at - slack - step)
    return Place(spans[-1].start + min(at, slacks[-1]), None, spans[-1])


def micro_batches(costs: Mapping[Size, float], micro_batch: int, most: int, together: int = 1) -> dict[Size, int]:
    """Samples of each bucket that go through the model at once.

    `micro_batch` of the costliest bucket; of the others as many as cost the same in all, at most `most`. `bucket_cost`
    says what a sample of a bucket costs. So many samples `together` are never parted, nor are there fewer.
    """
    highest = max(costs.values(), default=1.0)
    counts = {size: min(most, math.floor(micro_batch * (highest / cost) + 1e-9)) for size, cost in costs.items()}
    return {size: max(together, count - count % together) for size, count in counts.items()}


def bucket_cost(latent_size: Size, power: float) -> float:
    """tokens^power, up to a factor all buckets share. Power 1: memory grows with the tokens; 2: with their square."""
    return float(math.prod(latent_size.tuple)) ** power


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
