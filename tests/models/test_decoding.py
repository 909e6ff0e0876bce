"""Decoding a few frames at a time, in tiles where it is large, and again in float32 where half precision overflows."""

from pathlib import Path
from typing import Any

import pytest
import torch

from reelwright.models import decoding
from reelwright.models.codec import AutoencoderKLCodec, AutoencoderKLConfig, DCTCodecConfig
from reelwright.models.decoding import in_pieces, latents_at_once
from reelwright.pretrained.autoencoders import VideoAutoencoder, VideoAutoencoderConfig
from reelwright.types import UsageError
from tiny_families import save_wan
from tiny_svd import save_svd
from tiny_vae import save_tiny_vae

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    return save_tiny_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> Path:
    return save_wan(tmp_path_factory.mktemp("wan") / "model")


@pytest.fixture(scope="module")
def svd(tmp_path_factory) -> Path:
    return save_svd(tmp_path_factory.mktemp("svd") / "model")


def image_codec(vae: Path, **settings: Any) -> AutoencoderKLCodec:
    return AutoencoderKLConfig.parse({"model": str(vae), **settings}).build()


def video_codec(model: Path, **settings: Any) -> VideoAutoencoder:
    return VideoAutoencoderConfig.parse({"model": str(model), **settings}).build()


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def make_overflow(codec: Any) -> None:
    """Activations behind the first layer of the decoder that float16 cannot hold; the norms behind it scale them back.

    The published autoencoders that break in half precision do so from within as well.
    """
    with torch.no_grad():
        codec.vae.decoder.conv_in.weight.mul_(1e6)


@pytest.mark.parametrize(("half", "error"), [("float16", 0.02), ("bfloat16", 0.1)])
def test_half_precision_is_close_where_it_suffices(vae, half, error, capsys):
    z = latents(1, 4, 2, 2, 2)
    exact = image_codec(vae).decode(z)
    close = image_codec(vae, decode_dtype=half).decode(z)
    assert close.dtype == torch.float32 and not torch.equal(close, exact)
    assert (close - exact).abs().max() < error and capsys.readouterr().err == ""


def test_what_overflows_is_decoded_in_float32_and_said_once(vae, capsys):
    exact, half = (image_codec(vae, decode_dtype=dtype, frames_per_chunk=1) for dtype in ("float32", "float16"))
    for codec in (exact, half):
        make_overflow(codec)
    z = latents(1, 4, 3, 2, 2)
    with torch.autocast("cpu", torch.float16), torch.no_grad():
        assert not exact.vae.decode(z[:, :, 0]).sample.isfinite().all()  # so this is a decoder that float16 breaks
    expected = exact.decode(z)
    assert expected.isfinite().all() and torch.equal(half.decode(z), expected)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "codec.decode_dtype = float16: the decoder overflows" in said
    half.decode(z)
    assert capsys.readouterr().err == ""


def test_a_video_autoencoder_that_overflows_is_decoded_in_float32(svd, capsys):
    exact, half = video_codec(svd), video_codec(svd, decode_dtype="float16")
    for codec in (exact, half):
        make_overflow(codec)
    z = latents(1, 4, 2, 2, 2)
    assert torch.equal(half.decode(z), exact.decode(z))
    assert "overflows" in capsys.readouterr().err


class Spy:
    """Which tiles and how many frames each call of an autoencoder worked with."""

    def __init__(self, codec: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.tiled: list[bool] = []
        self.frames: list[int] = []
        inner = getattr(codec.vae, name)

        def call(x: torch.Tensor, *others: Any, **named: Any) -> Any:
            self.tiled.append(getattr(codec.vae, "use_tiling", False))
            self.frames.append(x.shape[0])
            return inner(x, *others, **named)

        monkeypatch.setattr(codec.vae, name, call)


@pytest.mark.parametrize(("tiling", "limit", "expected"), [
    ("auto", 64 * 64, False), ("auto", 64 * 64 - 1, True), (False, 1, False), (True, 2**22, True),
])  # fmt: skip
def test_large_pictures_are_decoded_in_tiles(vae, monkeypatch, tiling, limit, expected):
    monkeypatch.setattr(decoding, "MAX_PIXELS_AT_ONCE", limit)
    codec, whole = image_codec(vae, tiling=tiling), image_codec(vae, tiling=False)
    spy, tiles = Spy(codec, monkeypatch, "decode"), []
    inner = codec.vae.tiled_decode
    monkeypatch.setattr(codec.vae, "tiled_decode", lambda *a, **k: tiles.append(1) or inner(*a, **k))
    z = latents(1, 4, 2, 8, 8)
    decoded = codec.decode(z)
    assert set(spy.tiled) == {expected} and bool(tiles) == expected
    assert torch.equal(decoded, whole.decode(z)) == (not expected)
    assert decoded.shape == (1, 3, 2, 64, 64)
    encoding = Spy(codec, monkeypatch, "encode")
    codec.encode(torch.zeros(1, 3, 1, 64, 64))
    assert encoding.tiled == [tiling is True] and codec.vae.use_tiling is False


def test_no_more_frames_are_decoded_together_than_fit(vae, monkeypatch):
    codec = image_codec(vae)
    spy = Spy(codec, monkeypatch, "decode")
    z = latents(1, 4, 10, 2, 2)
    expected = codec.decode(z)
    assert spy.frames == [8, 2]
    monkeypatch.setattr(decoding, "MAX_PIXELS_AT_ONCE", 3 * 16 * 16)
    spy.frames.clear()
    torch.testing.assert_close(codec.decode(z), expected, rtol=0, atol=1e-5)
    assert spy.frames == [3, 3, 3, 1]


@pytest.mark.parametrize(("tiling", "limit", "expected"), [
    ("auto", 4 * 32 * 32, False), ("auto", 4 * 32 * 32 - 1, True), (False, 1, False), (True, 2**22, True),
])  # fmt: skip
def test_large_videos_are_decoded_in_tiles(wan, monkeypatch, tiling, limit, expected):
    """Wan's decoder works on four frames at a time, however many there are."""
    monkeypatch.setattr(decoding, "MAX_PIXELS_AT_ONCE", limit)
    codec = video_codec(wan, tiling=tiling)
    spy = Spy(codec, monkeypatch, "decode")
    assert codec.decode(latents(1, 16, 5, 4, 4)).shape == (1, 3, 17, 32, 32)
    assert spy.tiled == [expected] and codec.vae.use_tiling is False


def test_frames_of_an_image_encoder_go_a_few_at_a_time_where_they_are_large(svd, monkeypatch):
    video = latents(1, 3, 5, 16, 16).clamp(-1, 1)
    codec = video_codec(svd)
    expected = codec.encode(video).mean
    for settings, limit, chunks in (
        ({}, 2**22, [5]),
        ({}, 2 * 16 * 16, [2, 2, 1]),
        ({"frames_per_chunk": 3}, 16 * 16, [3, 2]),
        ({"tiling": False}, 16 * 16, [5]),
    ):
        codec = video_codec(svd, **settings)
        monkeypatch.setattr(decoding, "MAX_PIXELS_AT_ONCE", limit)
        encoding, decoding_ = Spy(codec, monkeypatch, "encode"), Spy(codec, monkeypatch, "decode")
        torch.testing.assert_close(codec.encode(video).mean, expected, rtol=0, atol=1e-5)
        assert codec.decode(latents(1, 4, 5, 2, 2)).shape == (1, 3, 5, 16, 16)
        assert encoding.frames == decoding_.frames == chunks


def test_only_tiles_of_encoding_are_other_latents(vae, wan):
    for build in (lambda **s: image_codec(vae, **s), lambda **s: video_codec(wan, **s)):
        auto = build().fingerprint()
        assert auto == build(tiling=False).fingerprint() == build(decode_dtype="float16").fingerprint()
        assert auto != build(tiling=True).fingerprint()


def test_latents_that_decode_by_themselves_may_be_decoded_apart(monkeypatch, vae, wan):
    codec = DCTCodecConfig.parse({"block": [2, 4, 4], "channels": 8}).build()
    codec.fit([latents(1, 3, 4, 16, 16).clamp(-1, 1)])
    z = latents(2, 8, 7, 3, 4)
    whole = codec.decode(z)
    monkeypatch.setattr(decoding, "MAX_PIXELS_AT_ONCE", 2 * 3 * 2 * 12 * 16)
    assert latents_at_once(codec, z) == 3
    parts = torch.cat([codec.decode(part) for part in z.split(3, dim=2)], dim=2)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    assert [piece.shape[2] for piece in in_pieces(whole)] == [6, 6, 2]
    assert latents_at_once(image_codec(vae), latents(1, 4, 9, 4, 4)) == 2 * 3 * 2 * 12 * 16 // 32**2
    assert latents_at_once(video_codec(wan), latents(1, 16, 9, 4, 4)) == 9


def test_what_is_no_tiling():
    with pytest.raises(UsageError, match="tiling"):
        VideoAutoencoderConfig.parse({"model": "x", "tiling": "sometimes"})
