"""The trained autoencoder: what it promises of its latents, that training lowers its error, and that it repeats."""

import pytest
import torch
from torch.testing import assert_close

from reelwright.models import autoencoder_fit
from reelwright.models.autoencoder import AutoencoderConfig
from reelwright.models.autoencoder_fit import Symmetry
from reelwright.models.codec import video_to_pixels
from reelwright.types import Codec, Compression, UserError

torch.set_num_threads(1)

TINY = AutoencoderConfig(
    block=(4, 8, 8), channels=8, patch=(2, 4, 4), patch_channels=24, width=24, heads=2, encoder_depth=1,
    decoder_depth=1, steps=240, batch_size=8, learning_rate=8e-3, augment="none",
)  # fmt: skip


def moving_squares(count: int, size: tuple[int, int, int] = (4, 16, 16)) -> list[torch.Tensor]:
    """Float `1 3 f h w`: a square of some colour that moves to the right or down."""
    generator = torch.Generator().manual_seed(0)
    videos = []
    for _ in range(count):
        frames, height, width = size
        video = torch.full((1, 3, *size), -0.8)
        top = int(torch.randint(0, height - 8, (1,), generator=generator))
        left = int(torch.randint(0, width - 8, (1,), generator=generator))
        colour = torch.rand(3, 1, 1, generator=generator) * 2 - 1
        for f in range(frames):
            video[0, :, f, top : top + 5, left + f : left + f + 5] = colour
        videos.append(video)
    return videos


def trained(**changes):
    codec = TINY.model_copy(update=changes).build()
    codec.fit(moving_squares(24))
    return codec


@pytest.fixture(scope="module")
def codec():
    return trained()


def squared_error(codec, videos) -> float:
    video = torch.cat(videos)
    return float((codec.decode(codec.encode(video).mean) - video).square().mean())


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
    loaded = TINY.build()
    with pytest.raises(ValueError, match="is not trained"):
        loaded.encode(moving_squares(1)[0])
    loaded.load_state_dict(codec.state_dict())
    video = moving_squares(2)[1]
    assert loaded.fingerprint() == codec.fingerprint()
    assert torch.equal(loaded.encode(video).mean, codec.encode(video).mean)
    assert not any(parameter.requires_grad for parameter in codec.parameters()) and not codec.training


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


def test_every_size_has_its_share_of_the_memory(monkeypatch):
    """Clips of two sizes in turn, and room for a third of them all."""
    small, large = moving_squares(30), moving_squares(30, (4, 32, 32))
    clips = [clip for pair in zip(small, large, strict=True) for clip in pair]
    monkeypatch.setattr(autoencoder_fit, "MEMORY_BYTES", sum(clip.numel() for clip in clips) // 3)
    held, places = autoencoder_fit._held_in_memory(clips, 1000)
    numbers = {group[0].shape[2]: sum(map(len, group)) for group in held}
    assert numbers.keys() == {16, 32} and min(numbers.values()) >= 6 and abs(numbers[16] - numbers[32]) <= 6
    assert sum(tensor.numel() for group in held for tensor in group) <= autoencoder_fit.MEMORY_BYTES
    for group, own in zip(held, places, strict=True):
        assert torch.equal(torch.cat(group), torch.cat([video_to_pixels(clips[place]) for place in own]))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 130])
def test_clips_are_held_in_their_order(count, monkeypatch):
    videos = moving_squares(count)
    monkeypatch.setattr(autoencoder_fit, "HELD_BYTES", 64 * videos[0].numel())
    (held,), (places,) = autoencoder_fit._held_in_memory(videos, 1000)
    assert places == list(range(count))
    assert all(len(tensor) == 64 for tensor in held[:-1])
    assert torch.equal(torch.cat(held), video_to_pixels(torch.cat(videos)))
    again = torch.cat(list(autoencoder_fit._AsVideos([held], "none")))
    assert (again - torch.cat(videos)).abs().max() < 0.005


def test_large_clips_are_held_one_by_one(monkeypatch):
    videos = moving_squares(3)
    monkeypatch.setattr(autoencoder_fit, "HELD_BYTES", videos[0].numel() - 1)
    (held,), _ = autoencoder_fit._held_in_memory(videos, 1000)
    assert [len(tensor) for tensor in held] == [1, 1, 1]


def test_a_changed_clip_holds_the_same_pixels():
    volume = torch.rand(3, 2, 8, 8)
    seen = set()
    for seed in range(24):
        made = Symmetry.drawn("all", torch.Generator().manual_seed(seed)).of_volume(volume)
        assert made.shape == volume.shape
        assert torch.equal(made.flatten().sort().values, volume.flatten().sort().values)
        seen.add(made.contiguous().numpy().tobytes())
    assert len(seen) > 12
    assert Symmetry.drawn("none", torch.Generator()) == Symmetry()
    assert {Symmetry.drawn("colours", torch.Generator().manual_seed(s))[1:] for s in range(8)} == {(False,) * 4}
    assert Symmetry(turned=True).of_volume(volume[:, :, :4]).shape == (3, 2, 4, 8)


@pytest.mark.parametrize("patch, size", [((2, 4, 4), (4, 16, 16)), ((2, 4, 4), (4, 16, 24)), ((1, 2, 4), (2, 8, 8))])
def test_components_of_a_changed_clip(patch, size):
    """The same whether pixels are changed or their components, where the basis says everything."""
    components = AutoencoderConfig(**{**TINY.model_dump(), "block": patch, "patch": patch}).components
    codec = components.model_copy(update={"channels": components.block_numbers}).build()
    generator = torch.Generator().manual_seed(0)
    video = torch.rand((6, 3, *size), generator=generator) * 2 - 1
    codec.fit(list(video.split(1)))
    for seed in range(12):
        symmetry = Symmetry.drawn("all", torch.Generator().manual_seed(seed))
        if patch[1] != patch[2]:
            symmetry = symmetry._replace(turned=False)  # a block that is not square cannot be turned
        pixels = torch.stack([symmetry.of_volume(volume) for volume in video])
        assert_close(symmetry.of_tokens(codec, codec.encode(video).mean), codec.encode(pixels).mean, atol=1e-4, rtol=0)


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
        ({"patch_channels": 97}, "has only 96 numbers"),
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


def test_aligned_latents_say_what_the_captions_say():
    plain, aligned = trained(), TINY.model_copy(update={"align": 3.0}).build()
    aligned.fit(moving_squares(24), captions=WARM)
    assert share_told(aligned) > 1.3 * share_told(plain)
    assert aligned.state_dict().keys() == plain.state_dict().keys(), "nothing of the naming is kept"
    with pytest.raises(UserError, match="no word of the captions tells the clips apart"):
        TINY.model_copy(update={"align": 3.0}).build().fit(moving_squares(24), captions=[("the same",)] * 24)


def test_words_that_tell_clips_apart():
    table = autoencoder_fit.caption_words([("A red ball", "the red one"), ("a blue ball",), ("a red cube",), ("a",)])
    assert table is not None
    words = ["ball", "red"]  # `a` is in all of them; blue, cube, one and the are in one clip each
    assert table.shape == (4, len(words))
    assert_close(table, torch.tensor([[0.5, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    assert autoencoder_fit.caption_words([("one",), ("two",)]) is None


def test_key_frames_are_all_that_is_read():
    codec = TINY.model_copy(update={"key_frames": 1}).build()
    codec.fit(moving_squares(24))
    video = torch.cat(moving_squares(3))
    between, key = video.clone(), video.clone()
    between[:, :, [0, 2]] = 0.7
    key[:, :, 1] = 0.7
    assert torch.equal(codec.encode(between).mean, codec.encode(video).mean)
    assert not torch.allclose(codec.encode(key).mean, codec.encode(video).mean)
    untrained = TINY.model_copy(update={"key_frames": 1, "steps": 1}).build()
    untrained.fit(moving_squares(24))
    assert squared_error(codec, moving_squares(24)) < 0.5 * squared_error(untrained, moving_squares(24))
    assert codec.decode(codec.encode(moving_squares(1, (8, 24, 32))[0]).mean).shape == (1, 3, 8, 24, 32)


@pytest.mark.parametrize("augment", ["colours", "all"])
def test_a_changed_clip_is_read_as_its_pixels_are(augment):
    """The components of key frames of a changed clip are the changed components."""
    codec = TINY.model_copy(update={"key_frames": 2, "augment": augment, "steps": 1}).build()
    codec.fit(moving_squares(24))
    video, symmetry = moving_squares(1)[0], Symmetry((1, 2, 0), augment == "all", augment == "all")
    changed = symmetry.of_volume(video[0])[None]
    assert codec.key_components is not None
    assert_close(symmetry.of_tokens(codec.key_components, codec.read(video)), codec.read(changed), atol=1e-3, rtol=0)


def test_more_key_frames_than_a_patch_has():
    with pytest.raises(ValueError, match="key_frames = 3: a patch has 2 frames"):
        AutoencoderConfig.model_validate(TINY.model_dump() | {"key_frames": 3})
