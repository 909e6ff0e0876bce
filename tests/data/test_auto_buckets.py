"""Buckets derived from the data: a function of what is there, near the size asked for, with a place for every clip."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelwright.data.auto_buckets import AREA_MISFIT, WIDEST, auto_buckets
from reelwright.data.config import DataConfig
from reelwright.types import Compression, Size


def _config(**values: Any) -> DataConfig:
    return DataConfig.parse({"path": "x", "buckets": "auto", "height": 128, "width": 128, **values})


clips = st.lists(st.tuples(st.integers(1, 60), st.integers(16, 2000), st.integers(16, 2000)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(clips, st.integers(1, 33), st.sampled_from([8, 16, 32]), st.randoms(use_true_random=False))
def test_rules(found: list[tuple[int, int, int]], frames: int, multiple: int, order: random.Random) -> None:
    config = _config(frames=frames, bucket_multiple=multiple)
    buckets = auto_buckets(found, config)
    shuffled = list(found)
    order.shuffle(shuffled)
    assert auto_buckets(shuffled, config) == buckets, "the order of the clips plays no part"
    assert len(set(buckets)) == len(buckets)
    for length, height, width in buckets:
        assert length <= frames
        assert height % multiple == width % multiple == 0
        assert 1 / AREA_MISFIT <= height * width / 128**2 <= AREA_MISFIT
        assert 1 / WIDEST <= width / height <= WIDEST
    assert min(bucket[0] for bucket in buckets) <= min(there for there, _, _ in found), "no clip is too short"
    assert DataConfig.parse({**config.plain(), "buckets": [list(b) for b in buckets]}).sizes[0].frames == buckets[0][0]


def test_aspect_ratios_and_lengths_that_are_there() -> None:
    found = [(40, 360, 640)] * 10 + [(40, 640, 360)] * 5 + [(9, 360, 640)] * 2 + [(3, 500, 500)]
    assert auto_buckets(found, _config(frames=16)) == [
        (16, 96, 176), (16, 176, 96), (8, 96, 176), (2, 128, 128),
    ]  # fmt: skip


def test_a_rare_shape_goes_to_its_neighbour() -> None:
    found = [(40, 360, 640)] * 99 + [(40, 640, 360)]
    assert auto_buckets(found, _config()) == [(16, 96, 176)]
    assert len(auto_buckets([*found, *[(40, 640, 360)] * 9], _config())) == 2


def test_only_what_codec_and_model_take() -> None:
    causal = Compression(4, 8, 8, causal=True)

    def fits(size: Size) -> bool:
        try:
            return causal.latent_size(size).height % 2 == 0
        except ValueError:
            return False

    found = [(40, 360, 640), (9, 360, 640), (5, 360, 640), (3, 360, 640), (1, 360, 640)]
    assert [bucket[0] for bucket in auto_buckets(found, _config(frames=17), fits)] == [17, 9, 5, 1]
    with pytest.raises(ValueError, match="no height and width near 128x128 in multiples of bucket_multiple = 16"):
        auto_buckets(found, _config(), lambda _: False)


def test_a_length_the_codec_does_not_take_is_no_fault_of_the_shapes() -> None:
    def fits(size: Size) -> bool:
        return size.frames >= 5 and (size.frames - 1) % 4 == 0

    found = [(40, 360, 640), (9, 360, 640)]
    assert [bucket[0] for bucket in auto_buckets(found, _config(frames=16), fits)] == [13, 5]
    with pytest.raises(ValueError, match="no length up to frames = 3 fits .*; 5, 9, 13 would: set data.frames"):
        auto_buckets(found, _config(frames=3), fits)


def test_without_clips_the_size_that_was_asked_for() -> None:
    assert auto_buckets([], _config(height=64, width=96)) == [(16, 64, 96)]
