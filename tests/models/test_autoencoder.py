"""The trained autoencoder: what it promises of its latents, that training lowers its error, and that it repeats."""

import pytest
import torch
from torch.testing import assert_close

from reelwright.models.autoencoder import AutoencoderConfig
from reelwright.types import Codec, Compression, UserError
from squares import assert_state_dict_holds_it_whole, moving_squares, squared_error

torch.set_num_threads(1)

TINY = AutoencoderConfig(
    block=(4, 8, 8), channels=8, patch=(2, 4, 4), patch_channels=24, width=24, heads=2, encoder_depth=1,
    decoder_depth=1, steps=240, batch_size=8, learning_rate=8e-3, augment="none",
)  # fmt: skip


def trained(**changes):
    codec = TINY.model_copy(update=changes).build()
    codec.fit(moving_squares(24))
    return codec


@pytest.fixture(scope="module")
def codec():
    return trained()


def test_latents_have_their_size_and_unit_variance(codec):
    assert isinstance(codec, Codec) and codec.compression == Compression(4, 8, 8)
    latents = codec.encode(torch.cat(moving_squares(24)))
    assert latents.logvar is None
    assert latents.mean.shape == (24, 8, 1, 2, 2) and latents.mean.dtype == torch.float32
    assert latents.mean.mean((0, 2, 3, 4)).abs().max() < 0.3
    assert (latents.mean.std((0, 2, 3, 4)) - 1).abs().max() < 0.3
    decoded = codec.decode(3 * latents.mean)
    assert decoded.shape == (24, 3, 4, 16, 16) and decoded.abs().max() <= 1


def test_training_lowers_the_error(codec):
    videos = moving_squares(24)
    mean = torch.cat(videos).mean(0, keepdim=True)
    assert squared_error(codec, videos) < 0.5 * squared_error(trained(steps=4), videos)
    assert squared_error(codec, videos) < 0.5 * float((torch.cat(videos) - mean).square().mean())


@pytest.mark.full
def test_muon_trains_too_and_repeats():
    videos = moving_squares(24)
    codec = trained(optimizer="muon", learning_rate=2e-2)
    assert squared_error(codec, videos) < 0.5 * squared_error(trained(steps=4), videos)
    few, again, other = trained(optimizer="muon", steps=6), trained(optimizer="muon", steps=6), trained(steps=6)
    assert torch.equal(few.latent_out.weight, again.latent_out.weight)
    assert not torch.allclose(few.latent_out.weight, other.latent_out.weight)


def test_whitening_is_the_unit_of_the_tokens():
    videos, deviations = moving_squares(24), {}
    for whiten in (0.0, 0.5, 1.0):
        codec = trained(steps=1, whiten=whiten)
        tokens = codec.components.encode(torch.cat(videos)).mean  # n k f h w
        assert_close(tokens.square().mean(), torch.tensor(1.0), atol=0.02, rtol=0)
        deviations[whiten] = tokens.std((0, 2, 3, 4))
    largest = deviations[0.0][:12] / deviations[0.0][0]
    assert largest[-1] < 0.4
    assert_close(deviations[0.5][:12] / deviations[0.5][0], largest.sqrt(), atol=0.05, rtol=0.1)
    assert_close(deviations[1.0][:12], torch.ones(12), atol=0.05, rtol=0)


@pytest.mark.full
def test_noise_in_training_makes_latents_robust(codec):
    videos = torch.cat(moving_squares(24))
    noise = torch.randn((24, 8, 1, 2, 2), generator=torch.Generator().manual_seed(1))

    def error_under_noise(one) -> float:
        return float((one.decode(0.6 * one.encode(videos).mean + 0.4 * noise) - videos).square().mean())

    assert error_under_noise(codec) < error_under_noise(trained(latent_noise=0.0))


def test_other_sizes_than_those_trained_on(codec):
    assert codec.decode(codec.encode(moving_squares(1, (8, 24, 32))[0]).mean).shape == (1, 3, 8, 24, 32)


def test_clips_of_several_sizes_train_together():
    codec = TINY.model_copy(update={"steps": 3}).build()
    codec.fit([*moving_squares(6), *moving_squares(5, (4, 16, 24))])
    assert codec.fitted


@pytest.mark.parametrize("augment, other", [("none", "colours"), ("colours", "all"), ("all", "none")])
def test_a_fit_repeats_whatever_came_before_it(augment, other):
    first = trained(steps=6, augment=augment)
    torch.rand(7)
    assert trained(steps=6, augment=augment).fingerprint() == first.fingerprint()
    assert trained(steps=7, augment=augment).fingerprint() != first.fingerprint()
    assert trained(steps=6, augment=other).fingerprint() != first.fingerprint()


def test_state_dict_holds_it_whole(codec):
    assert_state_dict_holds_it_whole(codec, TINY.build(), moving_squares(2)[1])


def test_only_so_many_clips_are_trained_on():
    read = []

    class Videos:
        def __len__(self):
            return 24

        def __iter__(self):
            for number, video in enumerate(moving_squares(24)):
                read.append(number)
                yield video

    few = TINY.model_copy(update={"steps": 2, "fit_clips": 6}).build()
    few.fit(Videos())
    evenly = TINY.model_copy(update={"steps": 2, "fit_clips": 6}).build()
    evenly.fit(moving_squares(24)[::4])
    assert read == list(range(24))
    assert few.fingerprint() == evenly.fingerprint()


def test_nothing_to_train_on():
    with pytest.raises(UserError, match="no clip"):
        TINY.build().fit([])
    with pytest.raises(UserError, match="do not vary"):
        TINY.build().fit([torch.zeros(1, 3, 4, 16, 16)] * 12)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"block": (4, 6, 8)}, "whole multiples of patch"),
        ({"width": 20, "heads": 3}, "head dimension"),
        ({"patch_channels": 97}, "patch_channels = 97: a patch of .* has only 96 numbers"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(ValueError, match=said):
        AutoencoderConfig(**{**TINY.model_dump(), **settings})


def warmth(video: torch.Tensor) -> tuple[str, ...]:
    return ("a warm square", "it is warm") if float(video[0, 0].max()) > 0 else ("a cold square",)


WARM = [warmth(video) for video in moving_squares(24)]


def share_told(codec) -> float:
    """Of the latents' variance, what lies between clips of one caption and of the other."""
    latents = codec.encode(torch.cat(moving_squares(24))).mean.mean((2, 3, 4))  # n c
    warm = torch.tensor(["it is warm" in some for some in WARM])
    between = sum(
        len(part) * (part.mean(0) - latents.mean(0)).square().sum() for part in (latents[warm], latents[~warm])
    )
    return float(between / (latents - latents.mean(0)).square().sum())


@pytest.mark.full
def test_aligned_latents_say_what_the_captions_say():
    plain, aligned = trained(), TINY.model_copy(update={"align": 3.0}).build()
    aligned.fit(moving_squares(24), captions=WARM)
    assert share_told(aligned) > 1.3 * share_told(plain)
    assert aligned.state_dict().keys() == plain.state_dict().keys(), "nothing of the naming is kept"
    with pytest.raises(UserError, match="no word of the captions tells the clips apart"):
        TINY.model_copy(update={"align": 3.0}).build().fit(moving_squares(24), captions=[("the same",)] * 24)


def test_settings_as_saved_before():
    assert AutoencoderConfig.model_validate(TINY.model_dump() | {"key_frames": 0}) == TINY
    with pytest.raises(ValueError, match="key_frames"):
        AutoencoderConfig.model_validate(TINY.model_dump() | {"key_frames": 2})
