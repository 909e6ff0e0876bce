"""Linear block codecs as properties; the AutoencoderKL wrapper against diffusers itself."""

import math

import pytest
import torch

from reelwright.models import codec
from reelwright.models.codec import (
    AutoencoderKLConfig,
    DCTCodecConfig,
    PCACodecConfig,
    PixelCodecConfig,
    pixels_to_video,
    video_to_pixels,
)
from reelwright.types import Codec, Compression, UsageError, UserError

torch.set_num_threads(1)

BLOCK = (2, 4, 4)
NUMBERS = 3 * math.prod(BLOCK)


def smooth_videos(count: int = 6, size: tuple[int, int, int] = (4, 16, 24)) -> list[torch.Tensor]:
    """Moving coloured waves with a little noise: neighbours alike, as in real videos."""
    generator = torch.Generator().manual_seed(0)
    f, h, w = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in size), indexing="ij")
    videos = []
    for _ in range(count):
        a, b, c = torch.rand(3, 3, 1, 1, 1, generator=generator)
        waves = torch.sin(a * f + 0.6 * b * h + 0.6 * c * w + 6 * a)  # 3 f h w
        videos.append((0.8 * waves + 0.02 * torch.randn(3, *size, generator=generator)).clamp(-1, 1)[None])
    return videos


def fitted(config):
    made = config.build()
    made.fit(smooth_videos())
    return made


def psnr(made, videos) -> float:
    errors = [(made.decode(made.encode(v).mean) - v).square().mean() for v in videos]
    return float(10 * torch.log10(4 / torch.stack(errors).mean()))


CONFIGS = {
    "pca": PCACodecConfig(block=BLOCK, channels=20),
    "dct": DCTCodecConfig(block=BLOCK, channels=20),
    "pixels": PixelCodecConfig(block=BLOCK),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_latents_have_their_size_and_unit_rms(name):
    made = fitted(CONFIGS[name])
    assert isinstance(made, Codec)
    assert made.compression == Compression(*BLOCK)
    posterior = made.encode(torch.cat(smooth_videos()))
    assert posterior.logvar is None
    assert posterior.mean.shape == (6, made.channels, 2, 4, 6) and posterior.mean.dtype == torch.float32
    assert abs(float(posterior.mean.square().mean().sqrt()) - 1) < 1e-3
    decoded = made.decode(3 * posterior.mean)
    assert decoded.shape == (6, 3, 4, 16, 24) and decoded.abs().max() <= 1


@pytest.mark.parametrize(
    "config",
    [PCACodecConfig(block=BLOCK, channels=NUMBERS), DCTCodecConfig(block=BLOCK, channels=NUMBERS), CONFIGS["pixels"]],
)
def test_nothing_is_lost_when_all_numbers_are_kept(config):
    made = fitted(config)
    for video in smooth_videos()[:2]:
        torch.testing.assert_close(made.decode(made.encode(video).mean), video, atol=2e-5, rtol=0)
        assert torch.equal(video_to_pixels(made.decode(made.encode(video).mean)), video_to_pixels(video))


@pytest.mark.parametrize("name", ["pca", "dct"])
def test_basis_is_orthonormal_and_decoding_inverts_encoding(name):
    made = fitted(CONFIGS[name])
    torch.testing.assert_close(made.basis.T @ made.basis, torch.eye(20), atol=1e-5, rtol=0)
    latents = 0.05 * torch.randn(1, 20, 2, 2, 2, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(made.encode(made.decode(latents)).mean, latents, atol=1e-4, rtol=0)


def test_dct_matrix_is_scipys():
    dct = pytest.importorskip("scipy.fft").dct
    x = torch.randn(7, dtype=torch.float64)
    torch.testing.assert_close(codec.dct_matrix(7) @ x, torch.from_numpy(dct(x.numpy(), norm="ortho")))


def test_dct_keeps_low_frequencies_first_and_chroma_coarser():
    basis = codec.dct_basis((1, 4, 4), 16)
    assert torch.allclose(basis[:, 0], torch.full((48,), 48**-0.5))
    luma = (basis.reshape(3, 16, 16).sum(0).norm(dim=0) > 1e-4).sum()
    assert luma > 16 / 3 + 2


def test_pca_is_the_best_linear_codec_of_its_own_data():
    pca, dct = (fitted(CONFIGS[name]) for name in ("pca", "dct"))
    videos = smooth_videos()
    assert psnr(pca, videos) > psnr(dct, videos) + 1
    blocks = torch.cat([codec.to_blocks(v, BLOCK).flatten(0, 1) for v in videos]).double()
    values = torch.linalg.svdvals(blocks - blocks.mean(0))
    lost = values[20:].square().sum() / blocks.numel()
    ours = torch.cat([codec.to_blocks(pca.decode(pca.encode(v).mean), BLOCK).flatten(0, 1) for v in videos])
    assert float((ours - blocks).square().mean() / lost) < 1.01


def test_whitening_evens_the_channels():
    spread = {}
    for whiten in (0.0, 0.5, 1.0):
        made = fitted(PCACodecConfig(block=BLOCK, channels=8, whiten=whiten))
        deviation = made.encode(torch.cat(smooth_videos())).mean.std(dim=(0, 2, 3, 4))
        spread[whiten] = float(deviation[0] / deviation[-1])
    assert abs(spread[1.0] - 1) < 0.05 and spread[0.0] > spread[0.5] > 1.5
    assert abs(spread[0.5] ** 2 / spread[0.0] - 1) < 0.05


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_carry_the_fit_and_the_fingerprint(name):
    made, again, other = fitted(CONFIGS[name]), fitted(CONFIGS[name]), CONFIGS[name].build()
    assert made.needs_fit and made.fitted and not other.fitted
    assert made.fingerprint() == again.fingerprint() != other.fingerprint()
    other.load_state_dict(made.state_dict())
    video = smooth_videos()[0]
    assert other.fitted and other.fingerprint() == made.fingerprint()
    assert torch.equal(other.encode(video).mean, made.encode(video).mean)
    rest = CONFIGS[name].model_copy(update={"whiten": 0.9})
    assert fitted(rest).fingerprint() != made.fingerprint()


def test_fit_blocks_are_spread_over_the_videos():
    config = PCACodecConfig(block=BLOCK, channels=4, fit_blocks=30)
    videos = smooth_videos()
    chosen = [len(blocks) for blocks in config.build()._chosen_blocks(videos)]
    assert chosen == [5] * 6
    unknown_length = [len(blocks) for blocks in config.build()._chosen_blocks(v for v in videos)]
    assert unknown_length == [30]
    made, again = config.build(), config.build()
    made.fit(videos), again.fit(videos)
    assert made.fingerprint() == again.fingerprint()


def test_autocast_does_not_reach_the_codec():
    made, video = fitted(CONFIGS["pca"]), smooth_videos()[0]
    with torch.autocast("cpu", torch.bfloat16):
        latents = made.encode(video).mean
        assert latents.dtype == torch.float32 and torch.equal(latents, made.encode(video).mean)
    assert torch.equal(latents, made.encode(video).mean)


def test_too_little_data_and_wrong_sizes_are_clear():
    with pytest.raises(UsageError, match=f"channels = {NUMBERS + 1}.*only {NUMBERS} numbers"):
        PCACodecConfig.parse({"block": BLOCK, "channels": NUMBERS + 1})
    with pytest.raises(UserError, match="only 48 blocks of 2x4x4, fewer than the 60"):
        PCACodecConfig(block=BLOCK, channels=60).build().fit(smooth_videos(1))
    with pytest.raises(UserError, match="only 0 blocks"):
        PixelCodecConfig(block=BLOCK).build().fit([])
    with pytest.raises(UserError, match="do not vary"):
        PCACodecConfig(block=BLOCK, channels=4).build().fit([torch.zeros(1, 3, 4, 16, 16)])
    with pytest.raises(ValueError, match="not fitted"):
        PCACodecConfig(block=BLOCK, channels=4).build().encode(smooth_videos(1)[0])
    with pytest.raises(ValueError, match="height = 18 does not fit the codec.*16 or 20"):
        fitted(CONFIGS["dct"]).encode(torch.zeros(1, 3, 4, 18, 16))


def test_still_pictures_leave_finite_latents():
    still = [video[:, :, :1].repeat(1, 1, 4, 1, 1) for video in smooth_videos()]
    made = PCACodecConfig(block=BLOCK, channels=60, whiten=1.0).build()
    made.fit(still)
    assert made.encode(still[0]).mean.isfinite().all() and psnr(made, still) > 40


def test_pixels_and_videos_round_trip():
    pixels = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8)
    video = pixels_to_video(pixels)
    assert video.shape == (2, 3, 3, 4, 5) and video.dtype == torch.float32 and video.abs().max() <= 1
    assert torch.equal(video_to_pixels(video), pixels)
    assert video_to_pixels(torch.tensor([-9.0, 0.0, 9.0]).reshape(1, 3, 1, 1, 1)).flatten().tolist() == [0, 128, 255]
    with pytest.raises(ValueError, match="uint8"):
        pixels_to_video(video)


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.3,
        shift_factor=0.1,
    )
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder, safe_serialization=True)
    return folder


def test_autoencoder_kl_equals_diffusers(vae_folder):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(vae_folder)
    made = AutoencoderKLConfig(model=str(vae_folder), frames_per_chunk=2).build()
    assert isinstance(made, Codec) and not made.needs_fit and made.fitted
    assert (made.channels, made.compression) == (4, Compression(1, 4, 4))
    assert not any(p.requires_grad for p in made.parameters()) and not made.train().training
    video = smooth_videos(1, (3, 16, 24))[0]
    posterior = made.encode(video)
    assert posterior.mean.shape == (1, 4, 3, 4, 6)
    for i in range(3):
        with torch.no_grad():
            expected = vae.encode(video[:, :, i]).latent_dist
            picture = vae.decode(posterior.mean[:, :, i] / 0.3 + 0.1).sample.clamp(-1, 1)
        torch.testing.assert_close(posterior.mean[:, :, i], (expected.mean - 0.1) * 0.3, atol=1e-5, rtol=1e-5)
        noise = torch.randn(1, 4, 4, 6)
        drawn = (expected.mean + expected.std * noise - 0.1) * 0.3
        ours = posterior.sample(noise[:, :, None].expand_as(posterior.mean))[:, :, i]
        torch.testing.assert_close(ours, drawn, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(made.decode(posterior.mean)[:, :, i], picture, atol=1e-5, rtol=1e-5)


def test_autoencoder_kl_fingerprint_follows_the_weights_not_the_path(vae_folder, tmp_path):
    import shutil

    copied = shutil.copytree(vae_folder, tmp_path / "copy")
    first, second = (AutoencoderKLConfig(model=str(path)).build() for path in (vae_folder, copied))
    assert first.fingerprint() == second.fingerprint()
    with torch.no_grad():
        next(second.parameters()).add_(1)
    assert first.fingerprint() != second.fingerprint()


def test_autoencoder_kl_refuses_what_is_no_safetensors(vae_folder, tmp_path):
    def attempt(name: str, content: bytes) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_bytes((vae_folder / "config.json").read_bytes())
        (folder / name).write_bytes(content)
        with pytest.raises(UserError) as raised:
            AutoencoderKLConfig(model=str(folder)).build()
        return str(raised.value)

    assert "safetensors" in attempt("diffusion_pytorch_model.bin", b"\x80\x02pickle")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    assert "git lfs pull" in attempt("diffusion_pytorch_model.safetensors", pointer)
    (tmp_path / "diffusion_pytorch_model.safetensors" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(UserError, match="cannot be loaded"):
        AutoencoderKLConfig(model=str(tmp_path / "diffusion_pytorch_model.safetensors")).build()
    with pytest.raises(UserError, match="no folder"):
        AutoencoderKLConfig(model=str(tmp_path / "absent")).build()
