"""UNet3D: 3-D convolutions from fine to coarse and back, steered by text and time through FiLM.

Encoder-decoder with skips as in Ronneberger et al. 2015 (arXiv 1505.04597) with the residual blocks of Ho et al.
2020 (arXiv 2006.11239), one axis more. FiLM (Perez et al. 2018, arXiv 1709.07871): the condition scales and shifts
the channels of every block; it is the caption's mean, so word order reaches the network only as far as the text
encoder put it into the tokens.
"""

from __future__ import annotations

from itertools import count
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from reelwright.config import Config
from reelwright.models.layers import (
    Checkpointing,
    TimestepEmbedding,
    check_inputs,
    masked_mean,
    needed_mask,
    recomputed,
    run_block,
    zero_init,
)
from reelwright.types import Size, Text, nearest_multiples


class UNet3DConfig(Config):
    """`width` channels at the finest level, `width * multipliers[i]` at level i, each at half the height and width."""

    type: Literal["unet3d"] = "unet3d"
    width: PositiveInt = 128
    multipliers: tuple[PositiveInt, ...] = Field(default=(1, 2, 4), min_length=1)
    blocks: PositiveInt = 2  # residual blocks a level and direction
    groups: PositiveInt = 32  # of the group norms
    gradient_checkpointing: Checkpointing = False

    @model_validator(mode="after")
    def _check(self) -> UNet3DConfig:
        if self.width % self.groups:
            raise ValueError(f"width = {self.width}: must be a multiple of groups = {self.groups}; change one of them")
        return self

    def build(self, channels: int, text_width: int) -> UNet3D:
        """The model, freshly initialised from torch's global generator."""
        return UNet3D(self, channels, text_width)


class _ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions around FiLM; starts as its skip connection."""

    def __init__(self, inputs: int, outputs: int, condition: int, groups: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, inputs)
        self.conv_in = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.film = nn.Linear(condition, 2 * outputs)
        self.norm_out = nn.GroupNorm(groups, outputs, affine=False)  # FiLM scales and shifts
        self.conv_out = nn.Conv3d(outputs, outputs, 3, padding=1)
        zero_init(self.conv_out)
        self.skip = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x `b c f h w`, condition `b d`."""
        scale, shift = self.film(condition)[:, :, None, None, None].chunk(2, dim=1)  # b c 1 1 1
        inner = self.conv_in(F.silu(self.norm_in(x)))  # b c' f h w
        inner = self.conv_out(F.silu(self.norm_out(inner) * (1 + scale) + shift))  # b c' f h w
        return self.skip(x) + inner  # b c' f h w


class UNet3D(nn.Module):
    """x_t `b c f h w`, t `b`, text `b l text_width` -> prediction `b c f h w`; any number of frames.

    Height and width are halved once a level below the first. The last convolution starts at zero: an untrained model
    predicts exactly 0.
    """

    lora_targets = ("film",)

    def __init__(self, config: UNet3DConfig, channels: int, text_width: int) -> None:
        super().__init__()
        self.config, self.channels, self.text_width = config, channels, text_width
        condition, groups = 4 * config.width, config.groups
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.time_in = TimestepEmbedding(condition)
        self.text_norm = nn.LayerNorm(text_width)
        self.text_in = nn.Linear(text_width, condition)
        self.latent_in = nn.Conv3d(channels, widths[0], 3, padding=1)

        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        now, skipped = widths[0], []
        for level, width in enumerate(widths):
            row = nn.ModuleList()
            for _ in range(config.blocks):
                row.append(_ResidualBlock(now, width, condition, groups))
                now = width
                skipped.append(now)
            self.down.append(row)
            if level < len(widths) - 1:
                self.shrink.append(nn.Conv3d(now, now, 3, stride=(1, 2, 2), padding=1))
        self.middle = nn.ModuleList(_ResidualBlock(now, now, condition, groups) for _ in range(2))
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            row = nn.ModuleList()
            for _ in range(config.blocks):
                row.append(_ResidualBlock(now + skipped.pop(), width, condition, groups))
                now = width
            self.up.append(row)
            if level > 0:
                self.grow.append(nn.Conv3d(now, now, 3, padding=1))
        self.norm = nn.GroupNorm(groups, now)
        self.head = nn.Conv3d(now, channels, 3, padding=1)
        zero_init(self.head)

    def check_size(self, latent: Size) -> Size:
        """Every latent place is one. ValueError where height or width cannot be halved once a level."""
        factor = 2 ** (len(self.config.multipliers) - 1)
        for axis in ("height", "width"):
            extent = getattr(latent, axis)
            if extent % factor:
                ways = nearest_multiples(extent, factor)
                raise ValueError(
                    f"{axis} = {extent} latents cannot be halved {len(self.config.multipliers) - 1} times, as "
                    f"model.multipliers = {list(self.config.multipliers)} wants; use {ways} latents, or fewer levels"
                )
        return latent

    def forward(self, x_t: Tensor, t: Tensor, cond: Text) -> Tensor:
        check_inputs(x_t, t, cond, self.channels, self.text_width)
        self.check_size(Size(*x_t.shape[2:]))
        text = self.text_in(self.text_norm(cond.values.to(x_t.dtype)))  # b l d
        pooled = masked_mean(text, needed_mask(cond.mask))  # b d
        condition = F.silu(self.time_in(t).to(x_t.dtype) + pooled)  # b d

        again = (recomputed(self.config.gradient_checkpointing, index) for index in count())  # of each block in turn
        x = self.latent_in(x_t)  # b c0 f h w
        skips: list[Tensor] = []
        for level, row in enumerate(self.down):
            for block in row:  # pyright: ignore[reportGeneralTypeIssues]
                x = run_block(block, next(again), x, condition)
                skips.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)  # b c f h/2 w/2
        for block in self.middle:
            x = run_block(block, next(again), x, condition)
        for level, row in enumerate(self.up):
            for block in row:  # pyright: ignore[reportGeneralTypeIssues]
                x = run_block(block, next(again), torch.cat([x, skips.pop()], dim=1), condition)
            if level < len(self.grow):
                x = self.grow[level](F.interpolate(x, scale_factor=(1.0, 2.0, 2.0)))  # b c f 2h 2w
        return self.head(F.silu(self.norm(x))).to(x_t.dtype)  # b c f h w
