"""Overlapping windows along time: what covers what, the same as a plain call where it can be, and bounded calls."""

import pytest
import torch
from torch import Tensor

from reelwright.diffusion.windows import in_windows, repeated_noise, window_starts, window_weights
from reelwright.types import Text

torch.set_num_threads(1)

CASES = [(16, 16, 8), (5, 16, 8), (17, 16, 8), (120, 16, 8), (33, 4, 0), (30, 7, 6), (40, 8, 3)]


def text(batch: int = 1, image: Tensor | None = None) -> Text:
    return Text(torch.zeros(batch, 1, 2), torch.ones(batch, 1, dtype=torch.bool), image)


def latents(count: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, count, 2, 2, generator=torch.Generator().manual_seed(count), dtype=torch.float64)


@pytest.mark.parametrize(("count", "size", "overlap"), CASES)
def test_windows_cover_everything_and_shares_add_up(count, size, overlap):
    starts = window_starts(count, size, overlap)
    assert starts[0] == 0 and starts[-1] == max(0, count - size) and list(starts) == sorted(set(starts))
    assert all(b - a <= size - overlap for a, b in zip(starts, starts[1:], strict=False))
    weights = window_weights(count, starts, size, overlap)
    total = torch.zeros(count)
    for start, shares in zip(starts, weights, strict=True):
        total[start : start + size] += shares
    torch.testing.assert_close(total, torch.ones(count))
    assert bool((weights > 0).all()) and bool((weights <= 1).all())


def test_shares_rise_and_fall_in_a_line_over_the_overlap():
    weights = window_weights(24, window_starts(24, 12, 3), 12, 3)
    torch.testing.assert_close(weights[1][:3], torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(weights[0][-3:], torch.tensor([0.75, 0.5, 0.25]))
    assert torch.equal(weights[0][:9], torch.ones(9))


@pytest.mark.parametrize("count", [1, 7, 16])
def test_a_video_of_one_window_is_the_plain_call(count):
    seen = []

    def denoiser(x, t, cond):
        seen.append(x)
        return torch.sin(x) * t

    x, t = latents(count), torch.rand(1, dtype=torch.float64)
    assert torch.equal(in_windows(denoiser, 16, 8)(x, t, text()), torch.sin(x) * t)
    assert len(seen) == 1 and seen[0] is x


@pytest.mark.parametrize(("count", "size", "overlap"), CASES)
def test_what_knows_nothing_of_other_frames_is_unchanged(count, size, overlap):
    """Blending predictions that agree gives what they agree on; where nothing overlaps, to the bit."""
    x, t = latents(count, batch=2), torch.rand(2, dtype=torch.float64)

    def denoiser(x, t, cond):
        return torch.tanh(3 * x)

    blended = in_windows(denoiser, size, overlap)(x, t, text(2))
    torch.testing.assert_close(blended, torch.tanh(3 * x), rtol=0, atol=1e-6)
    if not overlap:
        starts = window_starts(count, size, 0)
        apart = count - (starts[-1] - starts[-2]) if len(starts) > 1 else count
        assert torch.equal(blended[:, :, : min(apart, starts[-1])], torch.tanh(3 * x)[:, :, : min(apart, starts[-1])])


@pytest.mark.parametrize(("count", "size", "overlap"), CASES)
def test_no_call_sees_more_than_a_window_and_every_frame_is_seen(count, size, overlap):
    seen = []

    def denoiser(x, t, cond):
        seen.append((x.shape[2], x[0, 0, 0, 0, 0].item()))
        return x

    x = torch.arange(count, dtype=torch.float64)[None, None, :, None, None].expand(1, 1, count, 1, 1)
    in_windows(denoiser, size, overlap)(x, torch.zeros(1), text())
    assert max(frames for frames, _ in seen) == min(size, count)
    assert tuple(int(first) for _, first in seen) == window_starts(count, size, overlap)


def test_a_blend_is_the_mean_of_its_windows():
    """Two windows of 4 that share 2: a straight computation of the shared frames."""
    x = latents(6)

    def denoiser(x, t, cond):
        return x + x.mean(dim=2, keepdim=True)

    first, second = denoiser(x[:, :, :4], None, None), denoiser(x[:, :, 2:], None, None)
    blended = in_windows(denoiser, 4, 2)(x, torch.zeros(1), text())
    assert torch.equal(blended[:, :, :2], first[:, :, :2]) and torch.equal(blended[:, :, 4:], second[:, :, 2:])
    mixed = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(
        blended[:, :, 2:4], mixed * first[:, :, 2:] + (1 - mixed) * second[:, :, :2], rtol=0, atol=1e-6
    )


def test_windows_that_disagree_fade_into_one_another():
    """Each window predicts its own mean: cut, frames jump where the next begins; blended, they go in small steps."""

    def denoiser(x, t, cond):
        return x.mean(dim=2, keepdim=True).expand_as(x)

    x = latents(96)
    steps = {
        overlap: in_windows(denoiser, 16, overlap)(x, torch.zeros(1), text()).diff(dim=2).abs().amax().item()
        for overlap in (0, 8)
    }
    assert 0 < steps[8] < steps[0] / 3


def test_each_window_sees_its_own_part_of_a_picture_s_latents():
    x = latents(9)

    def denoiser(x, t, cond):
        assert torch.equal(cond.image, x)
        return x

    torch.testing.assert_close(in_windows(denoiser, 4, 2)(x, torch.zeros(1), text(image=x)), x, rtol=0, atol=1e-6)


def test_a_network_is_told_its_place_and_nothing_outside_of_windows():
    told: list[object] = []

    def denoiser(x, t, cond):
        told.append("called")
        return x

    predict = in_windows(denoiser, 4, 2, told.append)
    predict(latents(8), torch.zeros(1), text())
    assert told == [part for start in (0, 2, 4) for part in ((start, 8), "called", None)]
    told.clear()
    predict(latents(4), torch.zeros(1), text())
    assert told == ["called"]

    def failing(x, t, cond):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_windows(failing, 4, 2, told.append)(latents(8), torch.zeros(1), text())
    assert told[-1] is None


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (4, 4), (4, 5), (4, -1)])
def test_windows_that_do_not_advance_are_refused(size, overlap):
    with pytest.raises(ValueError, match="less than the window"):
        window_starts(20, size, overlap)


@pytest.mark.parametrize(("count", "size", "overlap"), CASES)
def test_repeated_noise_is_the_first_window_s(count, size, overlap):
    noise = latents(count)[0]
    repeated = repeated_noise(noise, size, overlap, seed=3)
    assert repeated.shape == noise.shape and torch.equal(repeated[:, :size], noise[:, :size])
    stride = size - overlap
    for start in range(size, count, stride):
        stop = min(count, start + stride)
        own = {tuple(frame.flatten().tolist()) for frame in repeated[:, start:stop].unbind(1)}
        before = {tuple(f.flatten().tolist()) for f in repeated[:, start - size : start - size + stride].unbind(1)}
        assert own <= before and len(own) == stop - start
    assert torch.equal(repeated, repeated_noise(noise, size, overlap, seed=3))
