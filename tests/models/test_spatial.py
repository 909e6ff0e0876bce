"""The VideoTransformer: its documented size, what influences what, and latents of any size."""

import pytest
import torch

from reelwright.config import Config
from reelwright.models.spatial import VideoTransformer, VideoTransformerConfig
from reelwright.types import Size, Text, UsageError
from tiny_denoisers import denoiser_inputs, wake

torch.set_num_threads(1)

CHANNELS, TEXT_WIDTH = 4, 10


def make(awake: bool = True, **settings) -> VideoTransformer:
    torch.manual_seed(0)
    values = {"width": 24, "depth": 2, "heads": 2, "positions": [4, 4], **settings}
    model = VideoTransformerConfig.parse(values).build(CHANNELS, TEXT_WIDTH)
    if awake:
        wake(model, std=0.2)
    return model


def inputs(size=(3, 4, 4), batch=2, length=5):
    return denoiser_inputs(size, CHANNELS, TEXT_WIDTH, batch, length)


def test_full_size_as_documented():
    """12 x (self, cross and text projections, MLP, three norms), latents and positions, time, text, head."""
    with torch.device("meta"):
        model = VideoTransformerConfig().build(channels=4, text_width=512)
    w = 768
    attention, mlp, norm = 4 * (w * w + w), 2 * 4 * w * w + 5 * w, 2 * w
    block = 2 * attention + mlp + 3 * norm
    ends = (4 * w + w) + 1024 * w + (256 * w + w + w * w + w) + (512 * w + w) + norm + (w * 4 + 4)
    assert sum(p.numel() for p in model.parameters()) == 12 * block + ends == 115_398_148
    assert model.positions.flatten(1).shape[1] == 1024 and model.config.heads == 12


@pytest.mark.parametrize("temporal", [False, True])
def test_untrained_prediction_is_exactly_zero_and_learns(temporal):
    model = make(awake=False, temporal=temporal)
    x, t, text = inputs()
    out = model(x, t, text)
    assert torch.equal(out, torch.zeros_like(x))
    (out - x).square().mean().backward()
    assert model.head.weight.grad is not None and model.head.weight.grad.abs().max() > 0


def test_frames_know_one_another_only_through_temporal_attention():
    x, t, text = inputs()
    other = x.clone()
    other[:, :, 0] += 1
    for temporal in (False, True):
        model = make(temporal=temporal)
        changed = (model(x, t, text) - model(other, t, text)).abs().amax(dim=(0, 1, 3, 4))
        assert changed[0] > 1e-3
        assert bool((changed[1:] > 1e-4).all()) if temporal else bool((changed[1:] == 0).all())


def test_temporal_attention_starts_without_effect():
    torch.manual_seed(0)
    plain = make()
    grown = make(temporal=True)
    missing, unexpected = grown.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all("temporal" in name for name in missing)
    for name, parameter in grown.named_parameters():
        if "temporal_attention.out" in name:
            torch.nn.init.zeros_(parameter)
    assert torch.allclose(plain(*inputs()), grown(*inputs()), atol=1e-6)


def test_positions_text_and_time_matter_and_padding_does_not():
    model = make()
    x, t, text = inputs()
    out = model(x, t, text)
    assert not torch.allclose(model(x.roll(1, dims=-1), t, text), out.roll(1, dims=-1), atol=1e-4)
    assert not torch.allclose(model(x, t * 0.5, text), out, atol=1e-4)
    values = text.values.clone()
    values[-1, -1] += 5  # a padded token
    assert torch.allclose(model(x, t, Text(values, text.mask)), out, atol=1e-6)
    values[0, 0] += 5
    assert not torch.allclose(model(x, t, Text(values, text.mask)), out, atol=1e-4)


def test_other_latent_sizes_interpolate_the_table():
    model = make()
    for size in ((1, 4, 4), (2, 8, 6), (7, 3, 5)):
        x, t, text = inputs(size)
        out = model(x, t, text)
        assert out.shape == x.shape and out.isfinite().all()
        assert model.check_size(Size(*size)) == Size(*size)
    assert torch.equal(model._positions(4, 4), model.positions.flatten(1).T)
    flat = make()
    torch.nn.init.ones_(flat.positions)
    assert torch.allclose(flat._positions(9, 7), torch.ones(63, 24))


def test_gradient_checkpointing_changes_nothing():
    x, t, text = inputs()
    gradients = []
    for checkpointing in (False, True):
        model = make(gradient_checkpointing=checkpointing).train()
        model(x, t, text).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="width = 25 over heads = 2"):
        VideoTransformerConfig.parse({"width": 25, "heads": 2})
    model = make()
    x, t, text = inputs()
    with pytest.raises(ValueError, match="x_t"):
        model(x[:, :2], t, text)
    assert issubclass(VideoTransformerConfig, Config)
