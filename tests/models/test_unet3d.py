"""The UNet3D: its documented parts, what influences what, and sizes that do not fit."""

import pytest
import torch

from reelwright.models.unet3d import UNet3D, UNet3DConfig
from reelwright.types import Size, Text, UsageError
from tiny_denoisers import denoiser_inputs, wake

torch.set_num_threads(1)

CHANNELS, TEXT_WIDTH = 4, 10


def make(awake: bool = True, **settings) -> UNet3D:
    torch.manual_seed(0)
    values = {"width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4, **settings}
    model = UNet3DConfig.parse(values).build(CHANNELS, TEXT_WIDTH)
    if awake:
        wake(model, std=0.1)
    return model


def inputs(size=(3, 4, 6), batch=2, length=5):
    return denoiser_inputs(size, CHANNELS, TEXT_WIDTH, batch, length)


def test_full_size_as_documented():
    """Counted from the layout: what a block, an end, a shrinking and a growing convolution hold."""
    with torch.device("meta"):
        model = UNet3DConfig().build(channels=4, text_width=512)

    def conv(a, b, k=27):
        return a * b * k + b

    def block(a, b):
        return 2 * a + conv(a, b) + (512 * 2 * b + 2 * b) + conv(b, b) + (conv(a, b, 1) if a != b else 0)

    down = block(128, 128) * 2 + block(128, 256) + block(256, 256) + block(256, 512) + block(512, 512)
    middle = 2 * block(512, 512)
    up = 2 * block(1024, 512) + block(768, 256) + block(512, 256) + block(384, 128) + block(256, 128)
    scale = conv(128, 128) + conv(256, 256) + conv(512, 512) + conv(256, 256)
    ends = conv(4, 128) + 2 * 128 + conv(128, 4) + (256 * 512 + 512 + 512 * 512 + 512) + 2 * 512 + (512 * 512 + 512)
    assert sum(p.numel() for p in model.parameters()) == down + middle + up + scale + ends == 137_117_700


def test_untrained_prediction_is_exactly_zero_and_learns():
    model = make(awake=False)
    x, t, text = inputs()
    out = model(x, t, text)
    assert torch.equal(out, torch.zeros_like(x))
    (out - x).square().mean().backward()
    assert model.head.weight.grad is not None and model.head.weight.grad.abs().max() > 0


def test_untrained_blocks_are_their_skips():
    block = make(awake=False).middle[0]
    x = torch.randn(2, 16, 2, 4, 4)
    assert torch.equal(block(x, torch.randn(2, 32)), x)


@pytest.mark.parametrize("size", [(1, 2, 2), (5, 8, 4)])
def test_shapes_of_any_size(size):
    x, t, text = inputs(size)
    out = make()(x, t, text)
    assert out.shape == x.shape and out.isfinite().all() and out.std() > 0


def test_text_time_and_other_frames_matter_and_padding_does_not():
    model = make()
    x, t, text = inputs()
    out = model(x, t, text)
    assert not torch.allclose(model(x, t * 0.5, text), out, atol=1e-5)
    values = text.values.clone()
    values[-1, -1] += 5  # a padded token
    assert torch.allclose(model(x, t, Text(values, text.mask)), out, atol=1e-6)
    values[0, 0] = -values[0, 0]
    assert not torch.allclose(model(x, t, Text(values, text.mask)), out, atol=1e-5)
    other = x.clone()
    other[:, :, 0] += 1
    assert (model(other, t, text) - out)[:, :, 1].abs().max() > 1e-5


def test_gradient_checkpointing_changes_nothing():
    x, t, text = inputs()
    gradients = []
    for checkpointing in (False, True):
        model = make(gradient_checkpointing=checkpointing).train()
        model(x, t, text).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="width = 10: must be a multiple of groups = 4"):
        UNet3DConfig.parse({"width": 10, "groups": 4})
    with pytest.raises(ValueError, match=r"height = 5 latents cannot be halved 1 times.*use 4 or 6"):
        make().check_size(Size(2, 5, 4))
    assert make().check_size(Size(2, 6, 4)) == Size(2, 6, 4)
