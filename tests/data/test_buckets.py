"""Which bucket, which windows, and an order in which nothing comes twice and nothing is missing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelwright.data.buckets import (
    BucketSampler,
    assign,
    bucket_cost,
    micro_batches,
    playable_span,
    scene_spans,
    window_places,
)
from reelwright.data.config import DataConfig
from reelwright.data.decode import VideoInfo, nearest_frames
from reelwright.types import Clip, Size


def _info(frames: int, fps: float = 30.0, width: int = 640, height: int = 360, first: float = 0.0) -> VideoInfo:
    return VideoInfo(first + np.arange(frames) / fps, width, height, 0, False, "h264", 0, 0.0)


def _config(**values: Any) -> DataConfig:
    return DataConfig.parse({"path": "x", **values})


def window_starts(info: VideoInfo, size: Size, config: DataConfig, clip: Clip | None = None) -> tuple[float, ...]:
    return tuple(place.start_seconds for place in window_places(info, size, config, clip))


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
    middle = window_starts(info, Size(16, 64, 64), _config(window="middle"), clip)[0]
    assert middle == pytest.approx(2.0 + (59 / 30 - 15 / 8) / 2), "from its first frame to the last before its end"
    late = Clip("a", Path("a.mp4"), ("x",), "a", start_seconds=9.0)
    assert "too short: 8 frames" in str(assign(info, _config(), late))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(0.005, 0.2), min_size=1, max_size=120),
    st.sets(st.integers(1, 119), max_size=6),
    st.integers(1, 12),
    st.sampled_from([2.0, 8.0, 24.0]),
    st.sampled_from(["head", "middle", "uniform", "spread"]),
    st.integers(1, 5),
)
def test_no_window_holds_a_cut(
    steps: list[float], cut_at: set[int], frames: int, fps: float, window: str, windows: int
) -> None:
    """Whatever the spacing of the frames: all pictures of a window are of one scene."""
    times = 3.0 + np.cumsum(steps)
    info = VideoInfo(times, 64, 64, 0, False, "h264", 0, 0.0)
    cut_at = {number for number in cut_at if number < len(times)}
    cuts = sorted(float(times[number]) - info.first_seconds for number in cut_at)
    scene = np.cumsum([number in cut_at for number in range(len(times))])
    config = _config(frames=frames, fps=fps, window=window, windows=windows if window == "uniform" else 1)
    size = assign(info, config, None, cuts)
    if isinstance(size, str):
        return
    places = window_places(info, size, config, None, cuts)
    assert 1 <= len(places) <= windows
    assert len({place.start_seconds for place in places}) == len(places)
    for place in places:
        targets = info.first_seconds + place.start_seconds + np.arange(frames) / fps
        if place.end_seconds is not None:  # as `read_spread` reads it
            since = times - info.first_seconds
            inside = (since >= place.start_seconds - 1e-6) & (since < place.end_seconds - 1e-6)
            assert inside.sum() >= frames
            targets = np.linspace(times[inside][0], times[inside][-1], frames)
        assert len(set(scene[nearest_frames(times, targets)])) == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([1 / 30, 1 / 24, 0.1, 0.31]), min_size=2, max_size=120),
    st.integers(1, 119),
    st.floats(0.0, 1.0),
    st.integers(1, 12),
    st.sampled_from([2.0, 5.0, 8.0, 10.0, 24.0]),
    st.sampled_from(["head", "middle", "uniform", "spread"]),
)
def test_a_part_of_a_film_ends_before_its_end(
    steps: list[float], following: int, past: float, frames: int, fps: float, window: str
) -> None:
    """With cuts as end times, the next scene's first frame stays out; a part of any length gives what it has."""
    times = 3.0 + np.cumsum(steps)
    since = times - times[0]
    following = min(following, len(times) - 1)
    end = float(since[following - 1] + (since[following] - since[following - 1]) * max(past, 1e-3))
    info = VideoInfo(times, 64, 64, 0, False, "h264", 0, 0.0)
    clip = Clip("a@0-2", Path("a.mp4"), ("x",), "a", 0.0, end)
    config = _config(frames=frames, fps=fps, window=window, windows=3 if window == "uniform" else 1)
    assert not isinstance(assign(info, _config(frames=1, window=window), clip), str)
    size = assign(info, config, clip)
    if isinstance(size, str):
        return
    for place in window_places(info, size, config, clip):
        targets = info.first_seconds + place.start_seconds + np.arange(frames) / fps
        if place.end_seconds is not None:  # as `read_spread` reads it
            inside = times[(since >= place.start_seconds - 1e-6) & (since < place.end_seconds - 1e-6)]
            targets = np.linspace(inside[0], inside[-1], frames)
        assert since[nearest_frames(times, targets)].max() < end - 1e-9


def test_a_whole_film_keeps_half_a_frame_after_its_last() -> None:
    info = _info(21, fps=10)
    assert playable_span(info) == playable_span(info, Clip("a", Path("a"), ("x",), "a", 0.0, 9.0)) == (0.0, 2.05)
    part = playable_span(info, Clip("a", Path("a"), ("x",), "a", 0.0, 2.0))
    assert part.end == pytest.approx(1.95, abs=1e-5)


def test_scenes() -> None:
    info, size = _info(300), Size(16, 64, 64)  # a window of 16 at 8 fps lasts 1.875 s
    cuts = (2.0, 2.5, 6.0)
    assert [round(span.start, 3) for span in scene_spans(info, None, cuts)] == [0.0, 2.0, 2.5, 6.0]
    config = _config(window="uniform", windows=4)
    starts = [place.start_seconds for place in window_places(info, size, config, None, cuts)]
    assert starts == sorted(starts) and not any(2.0 <= start < 2.5 for start in starts), "that scene is too short"
    assert starts[0] == 0.0 and starts[-1] == pytest.approx(299 / 30 - 15 / 8)
    middle = window_places(info, size, _config(window="middle"), None, cuts)
    assert middle[0].start_seconds == pytest.approx(6 + (299 / 30 - 6 - 15 / 8) / 2), "of the longest scene"
    reason = assign(_info(120), _config(frames=32), None, (2.0,))
    assert reason == "too short: its longest scene has 16 frames at 8 fps, the smallest bucket needs 32"


def test_spread_takes_the_whole_clip_and_no_fps() -> None:
    config = _config(window="spread", fps=1000)
    assert assign(_info(16), config) == Size(16, 64, 64)
    assert assign(_info(15), config) == "too short: 15 frames, the smallest bucket needs 16"
    (place,) = window_places(_info(90), Size(16, 64, 64), config)
    assert (place.start_seconds, place.end_seconds) == (0.0, pytest.approx(3.0))
    (place,) = window_places(_info(90), Size(16, 64, 64), config, None, (2.0,))
    assert (place.start_seconds, place.end_seconds) == (0.0, pytest.approx(2.0)), "the longest scene"


@settings(max_examples=100, deadline=None)
@given(
    st.sets(st.tuples(st.integers(1, 32), st.integers(1, 64), st.integers(1, 64)), min_size=1, max_size=8),
    st.integers(1, 64),
    st.integers(0, 64),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)
def test_micro_batches_cost_at_most_that_of_the_costliest_bucket(
    sizes: set[tuple[int, int, int]], micro_batch: int, more: int, power: float
) -> None:
    costs = {Size(*size): bucket_cost(Size(*size), power) for size in sizes}
    most = micro_batch + more
    found = micro_batches(costs, micro_batch, most)
    costliest = max(costs, key=lambda size: costs[size])
    assert found[costliest] == micro_batch
    for size, number in found.items():
        assert 1 <= number <= most
        assert number * costs[size] <= micro_batch * costs[costliest] * (1 + 1e-6)
        assert number == most or (number + 1) * costs[size] > micro_batch * costs[costliest] * (1 - 1e-6)


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
    for step in range(3 * -(-sum(counts) // batch_size) + len(counts)):
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


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_each_step_of_one_bucket(processes: int) -> None:
    """As training does it: every process makes its own sampler and takes its places of the step's samples."""
    together, epoch = [_sampler([30, 7, 13], 12, seed=3) for _ in range(processes)], []
    alone = _sampler([30, 7, 13], 12, seed=3)
    for step in range(40):
        size, items = alone.batch(step)
        drawn = [sampler.batch(step) for sampler in together]
        assert {other for other, _ in drawn} == {size}, "the same bucket in every process"
        shares = [other[rank::processes] for rank, (_, other) in enumerate(drawn)]
        assert {len(share) for share in shares} == {12 // processes}
        assert sorted(item for share in shares for item in share) == sorted(items)
        epoch += items
    assert len(set(epoch)) == len(epoch), "no sample twice in an epoch"


def test_samples_that_belong_together_are_never_parted() -> None:
    costs = {Size(1, 8, 8): 64.0, Size(1, 4, 4): 16.0, Size(1, 6, 6): 36.0}
    assert list(micro_batches(costs, 1, 12, together=2).values()) == [2, 4, 2]
    assert list(micro_batches(costs, 3, 12, together=2).values()) == [2, 12, 4]
    assert list(micro_batches(costs, 3, 12).values()) == [3, 12, 5]
