import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reelwright.models.codec import DCTCodecConfig
from reelwright.models.text import NativeTextConfig
from reelwright.types import Batch, Codec, Compression, Posterior, Size, Text, TextEncoder, UsageError, UserError

extent = st.integers(1, 70)
factor = st.integers(1, 17)


def test_exit_codes_of_mistakes() -> None:
    assert UserError.exit_code == 1
    assert UsageError.exit_code == 2 and issubclass(UsageError, UserError)


@pytest.mark.parametrize("wrong", [(0, 1, 1), (1, 0, 1), (1, 1, -3)])
def test_an_empty_size_is_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        Size(*wrong)
    assert str(Size(16, 64, 48)) == "16x64x48" and Size(16, 64, 48).tuple == (16, 64, 48)


@given(extent, extent, extent, factor, factor, factor, st.booleans())
def test_latent_size_inverts_pixel_size(f: int, h: int, w: int, pf: int, ph: int, pw: int, causal: bool) -> None:
    compression, latent = Compression(pf, ph, pw, causal), Size(f, h, w)
    pixels = compression.pixel_size(latent)
    assert pixels.tuple == (1 + (f - 1) * pf if causal else f * pf, h * ph, w * pw)
    assert compression.latent_size(pixels) == latent


@given(extent, factor, st.booleans())
def test_a_size_that_does_not_fit_is_named_with_the_nearest_that_do(frames: int, factor: int, causal: bool) -> None:
    compression = Compression(factor, 1, 1, causal)
    fitting = [n for n in range(1, 200) if compression.pixel_size(Size(1, 1, 1)).frames <= n]
    fitting = [n for n in fitting if (n - causal) % factor == 0]
    if frames in fitting:
        assert compression.latent_size(Size(frames, 1, 1)).frames == (frames - causal) // factor + causal
        return
    with pytest.raises(ValueError, match=rf"frames = {frames} does not fit") as refusal:
        compression.latent_size(Size(frames, 1, 1))
    offered = [int(word) for word in str(refusal.value).split("use ")[1].split(" or ")]
    nearest = {max((n for n in fitting if n < frames), default=None), min(n for n in fitting if n > frames)} - {None}
    assert set(offered) == nearest


def test_every_axis_is_checked_by_name() -> None:
    compression = Compression(4, 8, 16)
    for axis, size in {"frames": (3, 8, 16), "height": (4, 9, 16), "width": (4, 8, 8)}.items():
        with pytest.raises(ValueError, match=f"^{axis} = "):
            compression.latent_size(Size(*size))


def test_a_text_and_its_mask_have_one_shape_and_move_together() -> None:
    text = Text(torch.zeros(2, 3, 4), torch.tensor([[True, True, False]] * 2))
    moved = text.to(torch.float64)
    assert moved.values.dtype == torch.float64 and moved.mask.dtype == torch.bool and len(moved) == 2
    with pytest.raises(ValueError, match="differ"):
        Text(torch.zeros(2, 3), torch.ones(2, 4, dtype=torch.bool))


def test_a_posterior_draws_mean_plus_deviation_times_noise() -> None:
    mean, noise = torch.randn(2, 3, 1, 2, 2), torch.randn(2, 3, 1, 2, 2)
    logvar = torch.full_like(mean, 2 * math.log(3.0))
    torch.testing.assert_close(Posterior(mean, logvar).sample(noise), mean + 3.0 * noise)
    assert Posterior(mean, logvar).sample(None) is mean and Posterior(mean).sample(noise) is mean
    assert Posterior(mean, torch.full_like(mean, 1e4)).sample(noise).isfinite().all()
    moved = Posterior(mean, logvar).to(torch.float64)
    assert moved.mean.dtype == torch.float64 and moved.logvar is not None and moved.logvar.dtype == torch.float64
    with pytest.raises(ValueError, match="differ"):
        Posterior(mean, logvar[:1])


def test_a_batch_of_mixed_lengths_is_refused() -> None:
    good = Batch(
        (1, 2),
        (0, 0),
        Posterior(torch.zeros(2, 3, 1, 2, 2)),
        Text(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)),
        ("a", "b"),
    )
    assert len(good) == 2
    wrong = {
        "indices": (1,),
        "epochs": (0, 0, 0),
        "captions": ("a",),
        "latents": Posterior(torch.zeros(3, 3, 1, 2, 2)),
        "text": Text(torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool)),
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match="mixed lengths"):
            dataclasses.replace(good, **{name: value})
    with pytest.raises(ValueError, match="latents"):
        dataclasses.replace(good, latents=Posterior(torch.zeros(2, 3, 2, 2)))


def test_the_native_parts_answer_to_the_protocols() -> None:
    assert isinstance(DCTCodecConfig(block=(4, 8, 8), channels=6).build(), Codec)
    assert isinstance(NativeTextConfig(vocab_size=300, width=32, depth=1).build(), TextEncoder)
