"""The video autoencoders of diffusers as one codec: which of them it is, its own config.json says.

What differs between them is a row of `AUTOENCODERS`: how latents are normalised, and what one latent covers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from reelwright.config import Config
from reelwright.models.decoding import Decoding, at_once, is_large, tiling
from reelwright.models.foreign import Frozen, Precision, content_hash, freeze, load_foreign
from reelwright.pretrained.base import check_class
from reelwright.types import Compression, Posterior, Size, UsageError


class VideoAutoencoderConfig(Config):
    """The autoencoder of a pretrained video model; latents come normalised as that model was trained on them."""

    type: Literal["video_autoencoder"] = "video_autoencoder"
    model: str  # a diffusers directory or a hub id
    subfolder: str = "vae"  # "" where `model` is the autoencoder's own directory
    dtype: Precision = "float32"  # of encoding
    decode_dtype: Precision = "float32"  # of decoding; what overflows in less is decoded again in float32
    frame_group: PositiveInt = 1  # latent frames come in groups of so many; the first is repeated to fill its group
    decode_timestep: float = Field(default=0.0, ge=0, le=1)  # what LTX's decoder is told from 0.9.1 on; 0.05 is usual
    decode_noise: float = Field(default=0.0, ge=0, le=1)  # share of noise it is given to remove; 0.025 is usual
    tiling: bool | Literal["auto"] = "auto"  # overlapping tiles: less memory, faint seams; auto: to decode large videos
    clips_per_chunk: PositiveInt = 1  # clips in memory at a time
    frames_per_chunk: PositiveInt | None = None  # at a time where each is encoded by itself; null: as many as fit

    def build(self) -> VideoAutoencoder:
        """UserError where the weights are missing, pickles, pointers or of a class not known here."""
        return VideoAutoencoder(self)


@dataclass(frozen=True)
class Autoencoder:
    """How one class is used. `normalisation` gives (mean, std) of raw latents, `c` each, from the loaded module."""

    normalisation: Callable[[Any], tuple[Tensor, Tensor]]
    compression: Callable[[Any], Compression]
    per_frame: bool = False  # an image encoder; its decoder takes the number of frames
    frames_at_once: int | None = None  # pictures that its decoder works on together; None: all
    one_clip: bool = False  # diffusers' attention in it takes no second one


def _by_factor(vae: Any) -> tuple[Tensor, Tensor]:
    channels, shift = vae.config.latent_channels, getattr(vae.config, "shift_factor", None) or 0.0
    return torch.full((channels,), float(shift)), torch.full((channels,), 1 / float(vae.config.scaling_factor))


def _by_channel(vae: Any) -> tuple[Tensor, Tensor]:
    return torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)


def _ltx_normalisation(vae: Any) -> tuple[Tensor, Tensor]:
    return vae.latents_mean.float(), vae.latents_std.float() / float(vae.config.scaling_factor)


def _wan_compression(vae: Any) -> Compression:
    side = vae.config.scale_factor_spatial
    return Compression(vae.config.scale_factor_temporal, side, side, causal=True)


def _ltx_compression(vae: Any) -> Compression:
    side = vae.spatial_compression_ratio
    return Compression(vae.temporal_compression_ratio, side, side, causal=True)


def _cogvideox_compression(vae: Any) -> Compression:
    side = 2 ** (len(vae.config.block_out_channels) - 1)
    return Compression(int(vae.config.temporal_compression_ratio), side, side, causal=True)


def _hunyuan_compression(vae: Any) -> Compression:
    side = vae.config.spatial_compression_ratio
    return Compression(vae.config.temporal_compression_ratio, side, side, causal=True)


def _frame_compression(vae: Any) -> Compression:
    side = 2 ** (len(vae.config.block_out_channels) - 1)
    return Compression(1, side, side)


@dataclass(frozen=True)
class GroupedCompression(Compression):
    """Latent frames in groups of `group`: the first picture alone makes one, as do every `frames` pictures behind it.

    CogVideoX 1.5 takes pairs of latent frames, and an odd number of them is what its autoencoder makes.
    """

    group: int = 1

    def latent_size(self, size: Size) -> Size:
        groups = super().latent_size(size)
        return replace(groups, frames=groups.frames * self.group)

    def pixel_size(self, latent: Size) -> Size:
        return super().pixel_size(replace(latent, frames=latent.frames // self.group))


AUTOENCODERS: dict[str, Autoencoder] = {
    "AutoencoderKLWan": Autoencoder(_by_channel, _wan_compression, frames_at_once=4),
    "AutoencoderKLCogVideoX": Autoencoder(_by_factor, _cogvideox_compression, frames_at_once=8),
    "AutoencoderKLHunyuanVideo": Autoencoder(_by_factor, _hunyuan_compression, frames_at_once=16),
    "AutoencoderKLHunyuanVideo15": Autoencoder(_by_factor, _hunyuan_compression, one_clip=True),
    "AutoencoderKLLTXVideo": Autoencoder(_ltx_normalisation, _ltx_compression),
    "AutoencoderKLTemporalDecoder": Autoencoder(_by_factor, _frame_compression, per_frame=True),
}


def _grouped(own: Compression, group: int) -> GroupedCompression:
    if not own.causal:
        raise UsageError(
            f"codec.frame_group = {group}: this autoencoder keeps no first frame by itself, which is what would be "
            "repeated; leave it 1"
        )
    return GroupedCompression(group * own.frames, own.height, own.width, causal=True, group=group)


@contextmanager
def _fixed_randomness(device: torch.device) -> Iterator[None]:
    """The same global random numbers every time, and the caller's as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(0)
        if device.type == "cuda":
            torch.cuda.manual_seed(0)
        yield


class VideoAutoencoder(Frozen):
    """Clips through a frozen video autoencoder of diffusers."""

    needs_fit = False
    fitted = True

    def __init__(self, config: VideoAutoencoderConfig) -> None:
        super().__init__()
        import diffusers

        name = check_class(config.model, config.subfolder, tuple(AUTOENCODERS), "codec.model")
        self.vae: Any = load_foreign(
            lambda: getattr(diffusers, name).from_pretrained(
                config.model, subfolder=config.subfolder or None, use_safetensors=True, torch_dtype=torch.float32
            ),
            config.model, "codec.model", config.subfolder,
        )  # fmt: skip
        freeze(self.vae)
        self._decoding = Decoding(config.decode_dtype)
        self.config, self.kind = config, AUTOENCODERS[name]
        if self.kind.one_clip:
            self.vae.enable_slicing()
        self.own = self.compression = self.kind.compression(self.vae)
        self.padding = config.frame_group - 1  # latent frames put before that of the first picture
        if self.padding:
            self.compression = _grouped(self.own, config.frame_group)
        if config.frames_per_chunk is not None and not self.kind.per_frame:
            raise UsageError(
                f"codec.frames_per_chunk = {config.frames_per_chunk}: {name} encodes frames together, so that they "
                "cannot be taken apart; leave it null, and use tiling for less memory"
            )
        self.denoises = bool(getattr(self.vae.config, "timestep_conditioning", False))
        if (config.decode_timestep or config.decode_noise) and not self.denoises:
            raise UsageError(
                f"codec.decode_timestep, codec.decode_noise: the decoder of {config.model} removes no noise, so that "
                "they have no effect; leave both 0"
            )
        mean, std = self.kind.normalisation(self.vae)
        self.channels = len(mean)
        self.register_buffer("mean", mean.float().view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("std", std.float().view(1, -1, 1, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @torch.no_grad()
    def encode(self, video: Tensor) -> Posterior:
        """`b 3 f h w` in [-1, 1] -> mean and log-variance `b channels f' h' w'`, float32."""
        self.compression.latent_size(Size(*video.shape[2:]))
        dtype = getattr(torch, self.config.dtype)
        means, logvars = [], []
        for clips in video.float().split(self.config.clips_per_chunk):
            pixels = clips.transpose(1, 2).flatten(0, 1) if self.kind.per_frame else clips
            tiled = tiling(self.vae, self.config.tiling is True)
            with tiled, torch.autocast(video.device.type, dtype=dtype, enabled=dtype != torch.float32):
                together = self._at_once(len(pixels), video.shape[3] * video.shape[4])
                parts = [self.vae.encode(part).latent_dist for part in pixels.split(together)]
            moments = [torch.cat([p.mean for p in parts]).float(), torch.cat([p.logvar for p in parts]).float()]
            if self.kind.per_frame:
                moments = [m.unflatten(0, (len(clips), -1)).transpose(1, 2) for m in moments]
            if self.padding:
                moments = [torch.cat([m[:, :, :1].expand(-1, -1, self.padding, -1, -1), m], dim=2) for m in moments]
            means.append((moments[0] - self.mean) / self.std)
            logvars.append(moments[1] - 2 * self.std.log())
        return Posterior(torch.cat(means).contiguous(), torch.cat(logvars).contiguous())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """`b channels f' h' w'` -> `b 3 f h w`, clamped to [-1, 1]."""
        videos = []
        with torch.autocast(latents.device.type, enabled=False):
            raw = (latents.float() * self.std + self.mean)[:, :, self.padding :]
            for z in raw.split(self.config.clips_per_chunk):
                videos.append(self._decoding(self._decode, z))
        return torch.cat(videos).clamp(-1, 1)

    def _at_once(self, count: int, picture: int) -> int:
        """How many of `count` frames of `picture` pixels go through together."""
        chunk = self.config.frames_per_chunk
        if chunk is None and self.config.tiling == "auto" and is_large(count * picture):
            chunk = at_once(picture)
        return chunk if chunk is not None and self.kind.per_frame else count

    def _is_large(self, z: Tensor) -> bool:
        """Whether decoding raw latents `b c f' h w` as a whole takes more memory than it should.

        A decoder whose last layers make several pixels at each place (LTX's, Wan 2.2's) takes as much less.
        """
        frames, height, width = self.own.pixel_size(Size(*z.shape[2:])).tuple
        side = getattr(self.vae.config, "patch_size", None) or 1
        return is_large(min(frames, self.kind.frames_at_once or frames) * height * width // side**2)

    def _decode(self, z: Tensor) -> Tensor:
        tiled = self._is_large(z) if self.config.tiling == "auto" else self.config.tiling
        with tiling(self.vae, tiled), _fixed_randomness(z.device):  # LTX's decoder may add noise of its own
            return self._decode_whole(z)

    def _decode_whole(self, z: Tensor) -> Tensor:
        if self.kind.per_frame:
            chunks = []
            picture = self.own.height * z.shape[3] * self.own.width * z.shape[4]
            for chunk in z.split(self._at_once(z.shape[2], picture), dim=2):  # b c f' h w
                flat = chunk.transpose(1, 2).flatten(0, 1)  # b*f' c h w
                decoded = self.vae.decode(flat, num_frames=chunk.shape[2]).sample  # b*f' 3 h w
                chunks.append(decoded.unflatten(0, (len(z), chunk.shape[2])).transpose(1, 2))
            return torch.cat(chunks, dim=2)
        if self.denoises:
            noise = torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(0)).to(z)
            z = torch.lerp(z, noise.expand_as(z), self.config.decode_noise)
            return self.vae.decode(z, z.new_full((len(z),), self.config.decode_timestep)).sample
        # Of an even number of latents CogVideoX's decoder makes too many pictures, the first of them several times.
        return self.vae.decode(z).sample[:, :, -self.own.pixel_size(Size(*z.shape[2:])).frames :]

    def fingerprint(self) -> str:
        """sha256 over what latents depend on (weights, normalisation, precision, tiling), not the path."""
        settings = {
            "class": type(self.vae).__name__, "dtype": self.config.dtype, "tiling": self.config.tiling is True,
            "frame_group": self.config.frame_group,
            "mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist(),
        }  # fmt: skip
        return content_hash(settings, self.vae.state_dict())
