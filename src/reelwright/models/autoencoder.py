"""A small video autoencoder trained on the clips themselves: few, robust latents in place of many linear ones.

A linear codec's numbers each mean a little, so that a denoiser has to learn to draw: which of thousands of coefficients
go together to make one clean edge. Here a decoder learns that, from clips alone, in minutes: two transformers over the
principal components of patches, with a narrow waist between them. The latents are trained to survive noise (Yang et al.
2025, "Latent Denoising Makes Good Visual Tokenizers", arXiv 2507.15856), so that a denoiser's small errors are drawn
as clean pictures too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from reelwright.config import Config
from reelwright.models.codec import Block, PCACodecConfig
from reelwright.models.foreign import content_hash
from reelwright.models.layers import TransformerBlock, coordinate_features, patchify, rope_table, unpatchify
from reelwright.types import Compression, Posterior, Size

OCTAVES = 6  # of the absolute positions, as in the DiT
FIT_BLOCKS = 32768  # patches the principal components are of
KEY_CHANNELS = 48  # principal components read of a patch of one frame

Augment = Literal["none", "colours", "all"]


class AutoencoderConfig(Config):
    """`build().fit(videos)` trains one; `prepare` does so where there is none yet."""

    type: Literal["autoencoder"] = "autoencoder"
    block: Block = (16, 16, 16)  # frames, height, width that one latent position covers
    channels: PositiveInt = 24  # numbers of a latent
    patch: Block = (16, 8, 8)  # frames, height, width that one token of the two transformers covers
    patch_channels: PositiveInt = 96  # principal components kept of a patch: a bound of the round trip
    whiten: float = Field(default=0.5, ge=0, le=1)  # 0: errors count as in pixels; 1: in every component alike
    key_frames: NonNegativeInt = 0  # of every patch, read one by one in place of all frames' components; 0: not so
    align: float = Field(default=0.0, ge=0)  # weight of naming the captions' words by the noisy latents
    width: PositiveInt = 192
    heads: PositiveInt = 3
    encoder_depth: PositiveInt = 1
    decoder_depth: PositiveInt = 2
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: half the steps for the same error, latents used all alike
    steps: PositiveInt = 2000
    batch_size: PositiveInt = 16
    learning_rate: float = Field(default=3e-3, gt=0)
    latent_noise: float = Field(default=0.3, ge=0, le=1)  # the largest share of noise mixed into a training latent
    augment: Augment = "colours"  # exchange red, green, blue; also mirror, turn, reverse
    fit_clips: PositiveInt = 4096  # at most so many clips are trained on

    @property
    def merge(self) -> tuple[int, int, int]:
        """Patches that share one latent position: along frames, height and width."""
        frames, height, width = (block // patch for block, patch in zip(self.block, self.patch, strict=True))
        return frames, height, width

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(block % patch for block, patch in zip(self.block, self.patch, strict=True)):
            raise ValueError(f"block = {list(self.block)} must be whole multiples of patch = {list(self.patch)}")
        if self.key_frames > self.patch[0]:
            raise ValueError(f"key_frames = {self.key_frames}: a patch has {self.patch[0]} frames (patch)")
        head_dim, rest = divmod(self.width, self.heads)
        if rest or head_dim % 2 or head_dim < 6:
            raise ValueError(
                f"width = {self.width} over heads = {self.heads}: the head dimension must be a whole even number of at "
                "least 6 (RoPE turns pairs on three axes)"
            )
        self.components  # noqa: B018 - the same rule, said of these fields
        return self

    @property
    def components(self) -> PCACodecConfig:
        """The linear codec whose coefficients are the tokens, and whose units the training error is in.

        Outlines are in small components: in pixels' units they hardly count beside where an object is.
        """
        return PCACodecConfig(block=self.patch, channels=self.patch_channels, whiten=self.whiten, fit_blocks=FIT_BLOCKS)

    @property
    def key_components(self) -> PCACodecConfig:
        """The linear codec whose coefficients are read of key frames."""
        _, height, width = self.patch
        channels = min(KEY_CHANNELS, 3 * height * width)
        return PCACodecConfig(block=(1, height, width), channels=channels, whiten=self.whiten, fit_blocks=FIT_BLOCKS)

    def build(self) -> Autoencoder:
        return Autoencoder(self)


class Autoencoder(nn.Module):
    """`b 3 f h w` -> principal components of patches -> transformer -> latents `b channels f' h' w'`, and back."""

    needs_fit = True

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config, self.channels = config, config.channels
        self.compression = Compression(*config.block)
        self.components = config.components.build()
        self.key_components = config.key_components.build() if config.key_frames else None
        width, tokens, waist = config.width, config.patch_channels, config.width
        for merged in config.merge:
            waist *= merged
        read = tokens if self.key_components is None else self.key_components.channels * config.key_frames
        self.patch_in = nn.Linear(read, width)
        self.encoder_position = nn.Linear(6 * OCTAVES, width, bias=False)
        self.encoder = nn.ModuleList(TransformerBlock(width, config.heads) for _ in range(config.encoder_depth))
        self.latent_out = nn.Linear(waist + (width if config.key_frames else 0), config.channels)
        self.latent_in = nn.Linear(config.channels, waist)
        self.decoder_position = nn.Linear(6 * OCTAVES, width, bias=False)
        self.decoder = nn.ModuleList(TransformerBlock(width, config.heads) for _ in range(config.decoder_depth))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, tokens))
        self.register_buffer("latent_mean", torch.zeros(config.channels))
        self.register_buffer("latent_std", torch.zeros(config.channels))  # zero until fitted
        self.latent_mean: Tensor
        self.latent_std: Tensor
        self.requires_grad_(False).eval()

    @property
    def fitted(self) -> bool:
        return bool(self.latent_std.any())

    def fit(
        self,
        videos: Iterable[Tensor],
        on_step: Callable[[int, int], None] = lambda *_: None,
        dtype: torch.dtype = torch.float32,
        captions: Sequence[Sequence[str]] = (),
    ) -> None:
        """Train on videos `b 3 f h w` in [-1, 1], read once and in order, where the module is; products in `dtype`.

        `captions` of each video, where `align` wants them; the list may be filled while the videos are read. The result
        depends on these and the settings alone. UserError for too few patches or videos without variation.
        """
        from reelwright.models.autoencoder_fit import train_autoencoder

        train_autoencoder(self, videos, on_step, dtype, captions)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Posterior:
        """`b 3 f h w` in [-1, 1] -> posterior without variance, mean `b channels f' h' w'` of unit variance."""
        self._check_fitted()
        with torch.autocast(video.device.type, enabled=False):
            raw = self.to_latents(self.read(video.float()))
            return Posterior((raw - _channel(self.latent_mean)) / _channel(self.latent_std))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """`b channels f' h' w'` -> `b 3 f h w`, clamped to [-1, 1]."""
        self._check_fitted()
        with torch.autocast(latents.device.type, enabled=False):
            raw = latents.float() * _channel(self.latent_std) + _channel(self.latent_mean)
            return self.components.decode(self.from_latents(raw))

    def read(self, video: Tensor) -> Tensor:
        """What the encoder is told of `b 3 f h w`: components `b k f/pf h/ph w/pw`, or of each key frame by itself."""
        if self.key_components is None:
            return self.components.encode(video).mean
        patch, count = self.config.patch[0], self.config.key_frames
        # evenly from end to end; where that is not the same from the other end, reversed clips are read a frame off
        within = [round(number * (patch - 1) / (count - 1)) for number in range(count)] if count > 1 else [patch // 2]
        chosen = [start + frame for start in range(0, video.shape[2], patch) for frame in within]
        return self.key_components.encode(video[:, :, chosen]).mean  # b k f/pf*count h/ph w/pw

    def to_latents(self, tokens: Tensor) -> Tensor:
        """What `read` gives -> latents as the waist has them, `b channels f' h' w'`.

        Of key frames the mean over all places is handed on too: what is seen, wherever it is.
        """
        if self.key_components is not None:
            parts = tokens.unflatten(2, (-1, self.config.key_frames))  # b k f/pf count h/ph w/pw
            tokens = parts.transpose(2, 3).flatten(1, 2)  # b k*count f/pf h/ph w/pw
        size = Size(*tokens.shape[2:])
        x = self.patch_in(tokens.flatten(2).transpose(1, 2))  # b n d
        x = self._transform(x, size, self.encoder_position, self.encoder)  # b n d
        grid = x.transpose(1, 2).unflatten(2, size.tuple)  # b d f/pf h/ph w/pw
        merged = patchify(grid, self.config.merge)  # b m d*merged
        if self.key_components is not None:
            whole = x.mean(1, keepdim=True) * x.shape[1] ** 0.5  # b 1 d, as large as one place's numbers
            merged = torch.cat([merged, whole.expand(-1, merged.shape[1], -1)], dim=2)  # b m d*(merged+1)
        latents = self.latent_out(merged)  # b m channels
        coarse = [extent // merged for extent, merged in zip(size.tuple, self.config.merge, strict=True)]
        return latents.transpose(1, 2).unflatten(2, coarse)

    def from_latents(self, latents: Tensor) -> Tensor:
        """Inverse of `to_latents`, as far as it was learned."""
        coarse = latents.shape[2:]
        merged = self.latent_in(latents.flatten(2).transpose(1, 2))  # b m d*merged
        grid = unpatchify(merged, self.config.merge, (coarse[0], coarse[1], coarse[2]))  # b d f/pf h/ph w/pw
        size = Size(*grid.shape[2:])
        x = self._transform(grid.flatten(2).transpose(1, 2), size, self.decoder_position, self.decoder)  # b n d
        return self.head(x).transpose(1, 2).unflatten(2, size.tuple)  # b k f/pf h/ph w/pw

    def _transform(self, x: Tensor, size: Size, position: nn.Linear, blocks: nn.ModuleList) -> Tensor:
        x = x + position(coordinate_features(size.tuple, OCTAVES, x.device))  # b n d
        rope = rope_table(size.tuple, self.config.width // self.config.heads, x.device)  # n e
        for block in blocks:
            x = block(x, rope)  # b n d
        return x

    def fingerprint(self) -> str:
        """sha256 over the settings and everything trained."""
        return content_hash(self.config.plain(), self.state_dict())

    def _check_fitted(self) -> None:
        if not self.fitted:
            raise ValueError("the autoencoder is not trained; call fit(videos) or load its weights")


def _channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1, 1)
