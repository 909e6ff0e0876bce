"""Near-duplicates are found among many clips without comparing all of them."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from reelwright.data.duplicates import NEAR_BITS, groups, near_duplicates
from reelwright.data.looks import Looks


def _looks(*hashes: int) -> Looks:
    first, middle, last = hashes
    return Looks(pictures=3, brightest=255.0, change=10.0, largest_change=90.0, hashes=(first, middle, last))


def _random(count: int, seed: int = 0) -> list[Looks]:
    rows = np.random.default_rng(seed).integers(1, 2**63, (count, 3), dtype=np.int64)
    return [_looks(*(int(value) for value in row)) for row in rows]


words = st.integers(1, 2**64 - 1)


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(words, words, words),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 63)), max_size=3 * (NEAR_BITS + 3)),
)
def test_a_pair_is_found_just_where_every_picture_is_near(
    hashes: tuple[int, int, int], flips: list[tuple[int, int]]
) -> None:
    other = list(hashes)
    for picture, bit in flips:
        other[picture] ^= 1 << bit
    looks = [_looks(*hashes), *_random(5), _looks(*other)]
    near = looks[0].distance(looks[-1]) <= NEAR_BITS
    assert near_duplicates(looks) == ([(0, 6)] if near else [])


def test_the_same_shape_in_another_light_is_another_clip() -> None:
    a = _looks(11, 22, 33)
    for values, near in (
        ({"brightest": 244.0}, True), ({"brightest": 200.0}, False),
        ({"change": 6.0}, True), ({"change": 3.0}, False), ({"change": 30.0}, False),
    ):  # fmt: skip
        assert near_duplicates([a, replace(a, **values)]) == ([(0, 1)] if near else [])
    still = replace(a, change=0.0)
    assert near_duplicates([still, replace(a, change=0.05)]) == [(0, 1)]


def test_flat_pictures_are_no_evidence() -> None:
    assert near_duplicates([_looks(0, 0, 0)] * 4) == []
    assert near_duplicates([_looks(0, 5, 6), _looks(0, 5, 6)]) == []
    assert near_duplicates([]) == []


def test_groups_join_what_is_linked() -> None:
    assert groups(6, [(1, 4), (4, 2), (5, 3)]) == [0, 1, 1, 3, 1, 3]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
def test_groups_do_not_depend_on_the_order_of_links(count: int, links: list[tuple[int, int]]) -> None:
    links = [(a, b) for a, b in links if a < count and b < count]
    named = groups(count, links)
    assert named == groups(count, links[::-1])
    assert all(named[a] == named[b] for a, b in links)
    assert all(named[name] == name <= number for number, name in enumerate(named))


def test_ten_thousand_clips_take_little_time() -> None:
    """A tenth of them are near-duplicates of others; half of the bits are the same in all."""
    rng = np.random.default_rng(1)
    free = int(rng.integers(1, 2**63)) | 1
    looks = [_looks(*(value & free | 1 for value in look.hashes)) for look in _random(9000)]
    copies = rng.choice(9000, 1000, replace=False)
    for number in copies:
        flipped = [h ^ 1 << int(rng.integers(64)) for h in looks[number].hashes]
        looks.append(_looks(*flipped))
    started = time.process_time()
    pairs = set(near_duplicates(looks))
    assert time.process_time() - started < 4, "about 1 s"
    assert {(int(number), 9000 + k) for k, number in enumerate(copies)} <= pairs
