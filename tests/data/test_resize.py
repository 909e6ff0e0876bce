"""The resize is area averaging of the largest centred part, exact, never a stretch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelwright.data.resize import fit


def _picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _area_by_subdivision(picture: np.ndarray, part: tuple[float, ...], out: tuple[int, int]):
    """Area mean by the integral of the picture, in float64."""
    top, left, height, width = part
    integral = np.zeros((picture.shape[0] + 1, picture.shape[1] + 1, 3))
    integral[1:, 1:] = picture.astype(np.float64).cumsum(0).cumsum(1)

    def at(position: np.ndarray, axis: int, values: np.ndarray) -> np.ndarray:
        low = np.floor(position).astype(int).clip(0, values.shape[axis] - 2)
        part = (position - low).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        return values.take(low, axis) * (1 - part) + values.take(low + 1, axis) * part

    rows = top + height / out[0] * np.arange(out[0] + 1)
    columns = left + width / out[1] * np.arange(out[1] + 1)
    corners = at(columns, 1, at(rows, 0, integral))
    return np.diff(np.diff(corners, axis=0), axis=1) / (height / out[0] * width / out[1])


@pytest.mark.parametrize(
    ("stored", "wanted", "part"),
    [
        ((90, 160), (64, 64), (0.0, 35.0, 90.0, 90.0)),
        ((360, 640), (64, 64), (0.0, 140.0, 360.0, 360.0)),
        ((121, 161), (32, 48), (6.0, 0.0, 161 * 32 / 48, 161.0)),
        ((50, 66), (7, 5), (0.0, 15.0, 50.0, 50 * 5 / 7)),
    ],
)
def test_shrinking_is_the_area_mean(stored: tuple[int, int], wanted: tuple[int, int], part: tuple[float, ...]) -> None:
    picture = _picture(*stored)
    exact = _area_by_subdivision(picture, part, wanted)
    assert np.abs(fit(picture, *wanted) - exact).max() <= 0.52  # rounding, and weights of 16 bits


def test_whole_factors_are_block_means_and_ties_round_up() -> None:
    picture = _picture(8, 12)
    blocks = picture.reshape(4, 2, 6, 2, 3).astype(int).sum((1, 3))
    assert np.array_equal(fit(picture, 4, 6), (blocks + 2) // 4)


def test_a_part_of_the_wanted_size_is_copied() -> None:
    picture = _picture(50, 66)
    assert np.array_equal(fit(picture, 50, 66), picture)
    assert np.array_equal(fit(picture, 50, 40), picture[:, 13:53])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.floats(0.3, 3.0))
def test_a_flat_picture_stays_flat(height: int, width: int, out_height: int, out_width: int, aspect: float) -> None:
    picture = np.full((height, width, 3), (0, 131, 255), dtype=np.uint8)
    assert (fit(picture, out_height, out_width, aspect) == (0, 131, 255)).all()


def test_no_stretch_a_disc_stays_round() -> None:
    y, x = np.mgrid[:120, :200]
    for pixel_aspect in (1.0, 2.0, 0.5):
        disc = ((y - 59.5) ** 2 + ((x - 99.5) * pixel_aspect) ** 2 < 40**2).astype(np.uint8) * 255
        small = fit(np.repeat(disc[..., None], 3, axis=2), 60, 60, pixel_aspect)[..., 0] > 127
        height, width = small.any(1).sum(), small.any(0).sum()
        assert abs(int(height) - int(width)) <= 1, pixel_aspect
        assert height > 20


def test_enlarging_is_linear() -> None:
    ramp = np.repeat(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], 16, axis=0).repeat(3, axis=2)
    row = fit(ramp, 64, 64)[5, :, 0].astype(int)
    assert (np.diff(row) >= 0).all()
    assert np.diff(row).max() <= 3


def test_turned_views_are_taken() -> None:
    picture = _picture(40, 70)
    assert np.array_equal(fit(np.rot90(picture), 20, 12), fit(np.rot90(picture).copy(), 20, 12))
