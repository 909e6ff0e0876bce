"""The temporal term, the weights of frames, and how a loss of one's own is added."""

import pytest
import torch

from reelwright.diffusion.losses import LOSSES, frame_weights, mse, temporal_error
from reelwright.diffusion.objective import ObjectiveConfig
from reelwright.types import UsageError

TIME = torch.tensor([0.3, 0.9], dtype=torch.float64)


def video(seed: int, frames: int = 4) -> torch.Tensor:
    return torch.randn(2, 3, frames, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_temporal_error_sees_flicker_and_not_a_constant_offset():
    target = video(0)
    flicker = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)[:, None, None]
    assert temporal_error(mse, target + 1, target).abs().max() < 1e-24
    assert torch.allclose(temporal_error(mse, target + flicker, target), torch.full((2,), 4.0, dtype=torch.float64))
    assert torch.equal(temporal_error(mse, video(0, 1), video(1, 1)), torch.zeros(2, dtype=torch.float64))


def test_temporal_weight_adds_to_the_loss():
    prediction, target = video(0), video(1)
    plain = ObjectiveConfig(loss="l1").build().loss(prediction, target, TIME)
    both = ObjectiveConfig(loss="l1", temporal_weight=0.5).build().loss(prediction, target, TIME)
    expected = plain + 0.5 * (prediction.diff(dim=2) - target.diff(dim=2)).abs().flatten(1).mean(1)
    assert torch.allclose(both, expected, rtol=1e-12)


def test_frame_weights_are_relative_and_interpolated():
    assert frame_weights((3.0, 1.0), 5).tolist() == pytest.approx([1.5, 1.25, 1.0, 0.75, 0.5])
    assert frame_weights((1.0, 0.0, 1.0), 3).tolist() == pytest.approx([1.5, 0.0, 1.5])
    for frames in (1, 2, 7):
        assert frame_weights((1.0, 4.0, 2.0), frames).mean().item() == pytest.approx(1)


def test_weighted_frames_count_as_said():
    prediction, target = video(0), video(1)
    each = ObjectiveConfig(frame_weights=(1.0, 0.0, 0.0, 0.0)).build().loss(prediction, target, TIME)
    assert torch.allclose(each, ((prediction - target) ** 2)[:, :, 0].flatten(1).mean(1), rtol=1e-12)
    alike = ObjectiveConfig(frame_weights=(2.0, 2.0)).build().loss(prediction, target, TIME)
    assert torch.allclose(alike, ObjectiveConfig().build().loss(prediction, target, TIME), rtol=1e-12)


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, -1.0]])
def test_frame_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(UsageError, match="frame_weights"):
        ObjectiveConfig.parse({"frame_weights": weights})


def test_a_loss_of_ones_own_is_one_function_and_one_line(monkeypatch):
    def charbonnier(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ((prediction - target) ** 2 + 1e-6).sqrt()

    with pytest.raises(UsageError, match="charbonnier.*mse, l1, huber, mixed"):
        ObjectiveConfig.parse({"loss": "charbonnier"})
    monkeypatch.setitem(LOSSES, "charbonnier", charbonnier)
    found = ObjectiveConfig.parse({"loss": "charbonnier"}).build().loss(video(0), video(1), TIME)
    assert torch.allclose(found, charbonnier(video(0), video(1)).flatten(1).mean(1))
