"""A small video autoencoder trained on the clips themselves: few, robust latents in place of many linear ones.

A linear codec's numbers each mean a little, so that a denoiser has to learn to draw: which of thousands of coefficients
go together to make one clean edge. Here a decoder learns that, from clips alone, in minutes: two transformers over the
principal components of patches, with a narrow waist between them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from reelwright.models.codec import Block, PCACodecConfig
from reelwright.models.layers import TransformerBlock, patchify, unpatchify
from reelwright.models.trained_codec import (
    FIT_BLOCKS,
    OCTAVES,
    SMALLEST_VARIANCE,
    Attempt,
    Examples,
    TrainedCodec,
    TrainedCodecConfig,
    check_heads,
    check_patch_channels,
    fold_normalisation,
    noised,
    normalised,
    transformed,
)
from reelwright.types import Compression, Size


class AutoencoderConfig(TrainedCodecConfig):
    """Any clips: a latent covers a block of them."""

    type: Literal["autoencoder"] = "autoencoder"
    block: Block = (16, 16, 16)  # frames, height, width that one latent position covers
    channels: PositiveInt = 24  # numbers of a latent
    patch: Block = (16, 8, 8)  # frames, height, width that one token of the two transformers covers
    patch_channels: PositiveInt = 96  # principal components kept of a patch: a bound of the round trip
    width: PositiveInt = 192
    heads: PositiveInt = 3
    encoder_depth: PositiveInt = 1
    decoder_depth: PositiveInt = 2

    @model_validator(mode="before")
    @classmethod
    def _as_saved_before(cls, values: Any) -> Any:
        """Runs of version 0.1 have `key_frames: 0`, which said nothing."""
        if isinstance(values, dict) and values.get("key_frames") == 0:
            return {name: value for name, value in values.items() if name != "key_frames"}
        return values

    @property
    def merge(self) -> tuple[int, int, int]:
        """Patches that share one latent position: along frames, height and width."""
        frames, height, width = (block // patch for block, patch in zip(self.block, self.patch, strict=True))
        return frames, height, width

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(block % patch for block, patch in zip(self.block, self.patch, strict=True)):
            raise ValueError(f"block = {list(self.block)} must be whole multiples of patch = {list(self.patch)}")
        check_heads(self.width, self.heads)
        check_patch_channels(self.patch_channels, self.patch)
        return self

    @property
    def components(self) -> PCACodecConfig:
        """The linear codec whose coefficients are the tokens, and whose units the training error is in.

        Outlines are in small components: in pixels' units they hardly count beside where an object is.
        """
        return PCACodecConfig(block=self.patch, channels=self.patch_channels, whiten=self.whiten, fit_blocks=FIT_BLOCKS)

    def build(self) -> Autoencoder:
        return Autoencoder(self)


class Autoencoder(TrainedCodec):
    """Components of patches -> transformer -> waist -> transformer -> components of patches."""

    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config, config.components.build(), config.channels, Compression(*config.block))
        width, tokens, waist = config.width, config.patch_channels, config.width
        for merged in config.merge:
            waist *= merged
        self.patch_in = nn.Linear(tokens, width)
        self.encoder_position = nn.Linear(6 * OCTAVES, width, bias=False)
        self.encoder = nn.ModuleList(TransformerBlock(width, config.heads) for _ in range(config.encoder_depth))
        self.latent_out = nn.Linear(waist, config.channels)
        self.latent_in = nn.Linear(config.channels, waist)
        self.decoder_position = nn.Linear(6 * OCTAVES, width, bias=False)
        self.decoder = nn.ModuleList(TransformerBlock(width, config.heads) for _ in range(config.decoder_depth))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, tokens))
        self.requires_grad_(False).eval()

    def to_latents(self, clips: Examples) -> Tensor:
        tokens = clips.read
        size = Size(*tokens.shape[2:])
        x = self.patch_in(tokens.flatten(2).transpose(1, 2))  # b n d
        x = transformed(x, size, self.encoder_position, self.encoder, self.config.width // self.config.heads)  # b n d
        grid = x.transpose(1, 2).unflatten(2, size.tuple)  # b d f/pf h/ph w/pw
        latents = self.latent_out(patchify(grid, self.config.merge))  # b m channels
        coarse = [extent // merged for extent, merged in zip(size.tuple, self.config.merge, strict=True)]
        return latents.transpose(1, 2).unflatten(2, coarse)

    def from_latents(self, latents: Tensor) -> Tensor:
        coarse = latents.shape[2:]
        merged = self.latent_in(latents.flatten(2).transpose(1, 2))  # b m d*merged
        grid = unpatchify(merged, self.config.merge, (coarse[0], coarse[1], coarse[2]))  # b d f/pf h/ph w/pw
        size = Size(*grid.shape[2:])
        x = grid.flatten(2).transpose(1, 2)  # b n d
        x = transformed(x, size, self.decoder_position, self.decoder, self.config.width // self.config.heads)  # b n d
        return self.head(x).transpose(1, 2).unflatten(2, size.tuple)  # b k f/pf h/ph w/pw

    def attempt(self, clips: Examples, generator: torch.Generator) -> Attempt:
        latents, _, _ = normalised(self.to_latents(clips).float())
        noisy = noised(latents, self.config.latent_noise, generator)
        return Attempt(noisy, self.from_latents(noisy), clips.read)

    def settle(self, trained: Iterable[Examples], plain: Iterable[Examples]) -> None:
        fold_normalisation(self.latent_out, (self.to_latents(clips).float() for clips in trained))
        seen = [self.to_latents(clips).transpose(0, 1).flatten(1).double() for clips in plain]  # c m each
        count = sum(latents.shape[1] for latents in seen)
        first = torch.stack([latents.sum(1) for latents in seen]).sum(0) / count
        second = torch.stack([latents.square().sum(1) for latents in seen]).sum(0) / count
        self.latent_mean.copy_(first)
        self.latent_std.copy_((second - first.square()).clamp_min(SMALLEST_VARIANCE).sqrt())
