"""Which bucket, which windows, and an order in which nothing comes twice and nothing is missing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelwright.data.buckets import BucketSampler, assign, window_starts
from reelwright.data.config import DataConfig
from reelwright.data.decode import VideoInfo
from reelwright.types import Clip, Size


def _info(frames: int, fps: float = 30.0, width: int = 640, height: int = 360, first: float = 0.0) -> VideoInfo:
    return VideoInfo(first + np.arange(frames) / fps, width, height, 0, False, "h264", 0, 0.0)


def _config(**values: Any) -> DataConfig:
    return DataConfig.parse({"path": "x", **values})


def test_the_longest_then_the_nearest_shape() -> None:
    config = _config(buckets=[[8, 64, 64], [16, 64, 64], [16, 48, 80], [16, 80, 48], [32, 64, 64]])
    assert assign(_info(60), config) == Size(16, 48, 80)
    assert assign(_info(60, width=360, height=640), config) == Size(16, 80, 48)
    assert assign(_info(60, width=400, height=400), config) == Size(16, 64, 64)
    assert assign(_info(120), config) == Size(32, 64, 64)
    assert assign(_info(40), config) == Size(8, 64, 64)
    assert assign(_info(20), config) == "too short: 6 frames at 8 fps, the smallest bucket needs 8"


def test_of_equal_shapes_the_largest_that_does_not_enlarge() -> None:
    config = _config(buckets=[[16, 64, 64], [16, 128, 128], [16, 512, 512]])
    assert assign(_info(60, width=200, height=200), config) == Size(16, 128, 128)
    assert assign(_info(60, width=32, height=32), config) == Size(16, 64, 64)


def test_a_clip_of_exactly_the_length_fits() -> None:
    assert assign(_info(16, fps=8), _config()) == Size(16, 64, 64)
    assert assign(_info(15, fps=8), _config()) == "too short: 15 frames at 8 fps, the smallest bucket needs 16"


def test_windows() -> None:
    size, info = Size(16, 64, 64), _info(301, first=5.0)  # 10 s, a window is 1.875 s
    assert window_starts(info, size, _config()) == (0.0,)
    assert window_starts(info, size, _config(window="middle")) == pytest.approx((4.0625,))
    assert window_starts(info, size, _config(window="uniform")) == pytest.approx((4.0625,))
    several = window_starts(info, size, _config(window="uniform", windows=3))
    assert several == pytest.approx((0.0, 4.0625, 8.125))
    short = _info(16, fps=8)
    assert window_starts(short, size, _config(window="uniform", windows=3)) == pytest.approx((0.0,))


def test_start_and_end_of_a_clip_within_its_file() -> None:
    clip = Clip("a", Path("a.mp4"), ("x",), "a", start_seconds=2.0, end_seconds=4.0)
    info = _info(300)
    assert assign(info, _config(), clip) == Size(16, 64, 64)
    assert window_starts(info, Size(16, 64, 64), _config(), clip) == (2.0,)
    assert window_starts(info, Size(16, 64, 64), _config(window="middle"), clip)[0] == pytest.approx(2.0625)
    late = Clip("a", Path("a.mp4"), ("x",), "a", start_seconds=9.0)
    assert "too short: 8 frames" in str(assign(info, _config(), late))


def _sampler(counts: list[int], batch_size: int, seed: int = 0) -> BucketSampler:
    buckets, start = {}, 0
    for k, count in enumerate(counts):
        buckets[Size(k + 1, 8, 8)] = list(range(start, start + count))
        start += count
    return BucketSampler(buckets, batch_size, seed)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 17), st.integers(0, 3))
def test_none_twice_none_missing(counts: list[int], batch_size: int, seed: int) -> None:
    sampler = _sampler(counts, batch_size, seed)
    seen: dict[Size, list[tuple[int, int]]] = {}
    for step in range(3 * sampler.steps_per_epoch + len(counts)):
        size, items = sampler.batch(step)
        assert len(items) == batch_size
        seen.setdefault(size, []).extend(items)
    start = 0
    for k, count in enumerate(counts):
        stream = seen.get(Size(k + 1, 8, 8), [])
        for at in range(0, len(stream) - count + 1, count):  # every whole epoch holds every sample once
            epoch = stream[at : at + count]
            assert {index for index, _ in epoch} == set(range(start, start + count))
            assert {number for _, number in epoch} == {at // count}
        start += count
    assert max(Counter(item for stream in seen.values() for item in stream).values()) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_shares_are_never_a_batch_off(counts: list[int]) -> None:
    sampler, total, served = _sampler(counts, 4), sum(counts), Counter()
    for step in range(2 * total + 3):
        size, _ = sampler.batch(step)
        served[size.frames] += 1
        for k, count in enumerate(counts):
            assert abs(served[k + 1] - (step + 1) * count / total) < 1


def test_any_step_can_be_asked_for_at_any_time() -> None:
    steps = list(range(200))
    expected = [_sampler([30, 7, 13], 8).batch(step) for step in steps]
    forward, jumping = _sampler([30, 7, 13], 8), _sampler([30, 7, 13], 8)
    assert [forward.batch(step) for step in steps] == expected
    order = np.random.default_rng(0).permutation(steps).tolist()
    assert {step: jumping.batch(step) for step in order} == dict(zip(steps, expected, strict=True))
    assert jumping.batch(10_000_019) == _sampler([30, 7, 13], 8).batch(10_000_019)


def test_every_epoch_and_seed_has_its_own_order() -> None:
    def epochs(seed: int) -> list[tuple[int, ...]]:
        sampler = _sampler([40], 40, seed)
        return [tuple(index for index, _ in sampler.batch(step)[1]) for step in range(3)]

    orders = [*epochs(0), *epochs(1)]
    assert len(set(orders)) == 6
    assert all(list(order) != sorted(order) for order in orders)


def test_two_buckets_of_equal_length_differ_in_order() -> None:
    sampler = _sampler([32, 32], 32)
    (_, first), (_, second) = sampler.batch(0), sampler.batch(1)
    assert [index % 32 for index, _ in first] != [index % 32 for index, _ in second]


def test_nothing_to_draw_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="every bucket is empty"):
        BucketSampler({Size(1, 1, 1): []}, 4, 0)
    with pytest.raises(ValueError, match="batch_size = 0"):
        _sampler([3], 0)
