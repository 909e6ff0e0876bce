"""VideoTransformer: a plain transformer over the places of a frame, with or without attention over time.

Frames are drawn each by itself (they share text and noise time only) unless `temporal` lets every place attend to
itself in the other frames. For latents of an image autoencoder: 4 channels at 32x32, CLIP's 77 tokens of width 512.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from reelwright.config import Config
from reelwright.models.layers import (
    MLP,
    AttentionName,
    Checkpointing,
    CrossAttention,
    Rope,
    SelfAttention,
    TimestepEmbedding,
    check_attention,
    check_inputs,
    needed_mask,
    patchify,
    recomputed,
    rope_table,
    run_block,
    unpatchify,
    zero_init,
)
from reelwright.types import Size, Text


class VideoTransformerConfig(Config):
    """The defaults are 12 layers of width 768 with 12 heads and 1024 learned positions."""

    type: Literal["video_transformer"] = "video_transformer"
    width: PositiveInt = 768
    depth: PositiveInt = 12
    heads: PositiveInt = 12
    mlp_ratio: PositiveInt = 4
    positions: tuple[PositiveInt, PositiveInt] = (32, 32)  # latents; other heights and widths interpolate the table
    temporal: bool = False  # each place attends over the frames too; without it frames know nothing of one another
    attention: AttentionName = "auto"
    gradient_checkpointing: Checkpointing = False

    @model_validator(mode="after")
    def _check(self) -> VideoTransformerConfig:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width = {self.width} over heads = {self.heads}: the head dimension must be a whole even number; "
                f"use for example heads = {max(1, self.width // 64)}"
            )
        return self

    def build(self, channels: int, text_width: int) -> VideoTransformer:
        """The model, freshly initialised from torch's global generator. ValueError where the backend is missing."""
        return VideoTransformer(self, channels, text_width)


class _Block(nn.Module):
    """Pre-norm self-attention within each frame, attention over time (if any), cross-attention to text, GELU MLP."""

    def __init__(self, config: VideoTransformerConfig) -> None:
        super().__init__()
        width, heads, backend = config.width, config.heads, config.attention
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = SelfAttention(width, heads, backend, bias=True, normalise=False)
        self.temporal_norm = nn.LayerNorm(width) if config.temporal else None
        self.temporal_attention = None
        if config.temporal:  # starts at zero: a model trained without it goes on unchanged with it
            self.temporal_attention = SelfAttention(width, heads, backend, bias=True, normalise=False)
            zero_init(self.temporal_attention.out)
        self.cross_norm = nn.LayerNorm(width)
        self.text_kv = nn.Linear(width, 2 * width)
        self.cross_attention = CrossAttention(width, heads, backend, bias=True, normalise=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, config.mlp_ratio * width, bias=True)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None, frames: int, times: Rope) -> Tensor:
        """x `b f*n d`, text `b l d`, mask `b l` True where real, times: the frames' rotary table."""
        x = x + self.self_attention(self.self_norm(x), None, frames=frames)  # b f*n d
        if self.temporal_norm is not None and self.temporal_attention is not None:
            x = x + self.temporal_attention(self.temporal_norm(x), times, frames=frames, across=True)  # b f*n d
        x = x + self.cross_attention(self.cross_norm(x), self.text_kv(text), mask)  # b f*n d
        return x + self.mlp(self.mlp_norm(x))  # b f*n d


class VideoTransformer(nn.Module):
    """x_t `b c f h w`, t `b`, text `b l text_width` -> prediction `b c f h w`; every latent place is a token.

    The time embedding is added to every token. The head starts at zero: an untrained model predicts exactly 0.
    """

    lora_targets = ("qkv", "out", "q", "text_kv", "up", "down")

    def __init__(self, config: VideoTransformerConfig, channels: int, text_width: int) -> None:
        super().__init__()
        check_attention(config.attention)
        self.config, self.channels, self.text_width = config, channels, text_width
        self.latent_in = nn.Linear(channels, config.width)
        self.positions = nn.Parameter(torch.randn(config.width, *config.positions) * 0.02)  # d h w
        self.time_in = TimestepEmbedding(config.width)
        self.text_in = nn.Linear(text_width, config.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.head = zero_init(nn.Linear(config.width, channels))

    @property
    def mixes_frames(self) -> bool:
        """Whether what a frame becomes depends on the others: if not, parts of a video may be made by themselves."""
        return self.config.temporal

    def check_size(self, latent: Size) -> Size:
        """Every size fits: the grid of tokens is that of the latents."""
        return latent

    def forward(self, x_t: Tensor, t: Tensor, cond: Text) -> Tensor:
        check_inputs(x_t, t, cond, self.channels, self.text_width)
        _, _, frames, height, width = x_t.shape
        mask = needed_mask(cond.mask)  # b l, or None where every token is real

        x = self.latent_in(patchify(x_t, (1, 1, 1)))  # b f*n d
        positions = self._positions(height, width).to(x.dtype)  # n d
        x = x + positions.repeat(frames, 1) + self.time_in(t).to(x.dtype)[:, None]  # b f*n d
        text = self.text_in(cond.values.to(x_t.dtype))  # b l d
        times = rope_table((frames,), self.config.width // self.config.heads, x.device)
        for index, block in enumerate(self.blocks):
            again = recomputed(self.config.gradient_checkpointing, index)
            x = run_block(block, again, x, text, mask, frames, times)  # b f*n d
        x = self.head(self.norm(x))  # b f*n c
        return unpatchify(x, (1, 1, 1), (frames, height, width)).to(x_t.dtype)  # b c f h w

    def _positions(self, height: int, width: int) -> Tensor:
        """The learned table for a frame of h w latents, `n d`: as it is, or interpolated to another grid."""
        table = self.positions
        if table.shape[1:] != (height, width):
            table = F.interpolate(table[None].float(), (height, width), mode="bicubic", align_corners=False)[0]
        return table.flatten(1).T  # n d
