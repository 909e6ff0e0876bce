import math

import numpy as np
import pytest
import torch

from reelwright.metrics.frames import mse, psnr


def test_known_values() -> None:
    black = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    assert mse(black, black + 16) == 256.0
    assert psnr(black, black + 16) == pytest.approx(10 * math.log10(255**2 / 256))
    assert psnr(black, black + 255) == 0.0
    assert psnr(black, black) == math.inf


def test_uint8_differences_do_not_wrap_round() -> None:
    low, high = np.full((1, 2, 2, 3), 3, np.uint8), np.full((1, 2, 2, 3), 250, np.uint8)
    assert mse(low, high) == mse(high, low) == 247.0**2


def test_floats_and_tensors_agree_with_uint8() -> None:
    a, b = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
    expected = psnr(a, b)
    as_float = [torch.from_numpy(video).float() / 127.5 - 1 for video in (a, b)]
    assert psnr(*as_float, peak=2.0) == pytest.approx(expected, abs=1e-4)
    assert psnr(torch.from_numpy(a), b) == expected
    assert mse(as_float[0].bfloat16(), as_float[0].bfloat16()) == 0.0


def test_mistakes_are_named() -> None:
    a = np.zeros((1, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="same frames and size"):
        mse(a, a[:, :2])
    with pytest.raises(ValueError, match="same kind of pixels"):
        mse(a, a.astype(np.float32))
    with pytest.raises(ValueError, match="peak is not given"):
        psnr(a.astype(np.float32), a.astype(np.float32))
    with pytest.raises(ValueError, match="peak = 0"):
        psnr(a, a, peak=0)
    with pytest.raises(ValueError, match="empty"):
        mse(a[:0], a[:0])
