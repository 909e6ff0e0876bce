"""Optical flow against motions that are known to a fraction of a pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reelwright.metrics.flow import _median, gaussian_blur, luma, optical_flow, visible, warp


def texture(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """A smooth random picture, known at every point: waves of 6 to 200 pixels whose strength falls with frequency."""
    random = np.random.default_rng(seed)
    total = np.zeros_like(x)
    for _ in range(300):
        frequency = np.exp(random.uniform(np.log(1 / 200), np.log(1 / 6)))
        angle, phase = random.uniform(0, 2 * np.pi, size=2)
        total += np.sin(2 * np.pi * frequency * (np.cos(angle) * x + np.sin(angle) * y) + phase) / frequency
    return total


def moved(height: int, width: int, dx: np.ndarray | float, dy: np.ndarray | float, seed: int = 0) -> torch.Tensor:
    """Two frames `2 h w` in [0, 1]: what lies at (x, y) in the first lies at (x + dx, y + dy) in the second."""
    y, x = np.meshgrid(np.arange(height, dtype=float), np.arange(width, dtype=float), indexing="ij")
    frames = np.stack([texture(x, y, seed), texture(x - dx, y - dy, seed)])
    return torch.from_numpy((frames - frames.min()) / (frames.max() - frames.min())).float()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shift", [(0.3, -0.2), (0.5, 0.5), (1.7, 0.6), (-5.3, 3.4)])
def test_translations_to_a_fraction_of_a_pixel(shift, seed):
    frames = moved(72, 96, *shift, seed=seed)
    flow = optical_flow(frames[:1], frames[1:])[0]
    error = (flow - torch.tensor(shift)[:, None, None]).norm(dim=0)[10:-10, 10:-10]
    assert error.mean() < 0.12 and error.quantile(0.95) < 0.4


def test_what_does_not_move_has_no_flow():
    frames = moved(40, 56, 0, 0)
    assert optical_flow(frames[:1], frames[1:]).abs().max() < 1e-5
    flat = torch.full((1, 40, 56), 0.5)
    assert optical_flow(flat, flat).abs().max() < 1e-5
    assert optical_flow(flat, flat + 0.1).abs().max() < 1e-5, "a change of light without texture has no direction"


def test_a_zoom_is_followed():
    y, x = np.meshgrid(np.arange(64.0) - 31.5, np.arange(64.0) - 31.5, indexing="ij")
    true = torch.from_numpy(np.stack([0.06 * x, 0.06 * y])).float()
    # the second frame shows at p what the first showed at p / 1.06: the flow there is 0.06 of the place it left
    frames = moved(64, 64, x - x / 1.06, y - y / 1.06)
    error = (optical_flow(frames[:1], frames[1:])[0] - true).norm(dim=0)[10:-10, 10:-10]
    assert error.mean() < 0.15


def test_pairs_do_not_touch_one_another():
    a, b = moved(32, 40, 1.2, 0.0, seed=3), moved(32, 40, 0.0, -2.0, seed=4)
    together = optical_flow(torch.stack([a[0], b[0]]), torch.stack([a[1], b[1]]))
    torch.testing.assert_close(together[1:], optical_flow(b[:1], b[1:]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (13, 200), (25, 24), (64, 3)])
def test_any_size_works(size):
    flow = optical_flow(torch.rand(2, *size), torch.rand(2, *size))
    assert flow.shape == (2, 2, *size) and bool(flow.isfinite().all())


def test_frames_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="both must be one"):
        optical_flow(torch.rand(1, 8, 8), torch.rand(1, 8, 9))


def test_warping_reads_where_the_flow_leads():
    frames = torch.arange(24.0).reshape(1, 1, 4, 6)
    flow = torch.zeros(1, 2, 4, 6)
    torch.testing.assert_close(warp(frames, flow), frames)
    flow[:, 0], flow[:, 1] = 1.5, 1.0
    assert warp(frames, flow)[0, 0, 0, 0] == 6 + 1.5
    flow[:, 0] = 100
    assert warp(frames, flow)[0, 0, 0, 0] == 11, "beyond the rim the rim goes on"


def test_what_is_covered_or_leaves_is_not_visible():
    """A textured square moves right by 6 pixels over a textured ground: what it runs over is gone."""
    ground, square = moved(64, 80, 0, 0, seed=1), moved(64, 80, 0, 0, seed=2)
    first, second = ground[0].clone(), ground[0].clone()
    first[20:44, 20:44] = square[0, 20:44, 20:44]
    second[20:44, 26:50] = square[0, 20:44, 20:44]
    seen = visible(optical_flow(first[None], second[None]), optical_flow(second[None], first[None]))[0]
    assert seen[28:38, 28:40].float().mean() > 0.9, "the square itself"
    assert seen[2:14].float().mean() > 0.95 and seen[:, 64:].float().mean() > 0.95, "the ground far from it"
    assert seen[24:40, 45:49].float().mean() < 0.5, "what it covers"
    out = torch.zeros(1, 2, 8, 8)
    out[:, 0] = 3
    gone = visible(out, -out)[0]
    assert gone[:, :5].all() and not gone[:, 5:].any(), "what leaves the frame"


def test_the_median_is_the_median():
    values = torch.randn(2, 2, 7, 9, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(values, (1, 1, 1, 1), mode="replicate")
    around = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
    torch.testing.assert_close(_median(values), around.median(dim=-1).values, atol=0, rtol=0)


def test_brightness_and_blur():
    assert luma(torch.tensor([[[[255, 255, 255], [255, 0, 0]]]], dtype=torch.uint8)).tolist() == [
        [[pytest.approx(1.0), pytest.approx(0.299)]]
    ]
    impulse = torch.zeros(1, 2, 21, 21)
    impulse[:, :, 10, 10] = 1
    blurred = gaussian_blur(impulse, 2.0)
    assert blurred.sum() == pytest.approx(2.0, abs=1e-5) and blurred[0, 0].argmax() == 10 * 21 + 10
    torch.testing.assert_close(gaussian_blur(torch.ones(1, 1, 5, 9), 3.0), torch.ones(1, 1, 5, 9))
