"""The native denoiser: a spatio-temporal diffusion transformer (Peebles & Xie 2023, DiT) over video latents."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
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
    coordinate_features,
    masked_mean,
    modulated_norm,
    needed_mask,
    patchify,
    recomputed,
    rope_frequencies,
    rope_table,
    run_block,
    unpatchify,
    zero_init,
)
from reelwright.types import Size, Text, nearest_multiples

OCTAVES = 6  # finest absolute position: 1/64 of a side; nearer neighbours are told apart by RoPE

SLOWEST = 10_000.0  # places in which the slowest sine turns by a radian; the fastest does so in one

PRESETS: dict[str, dict[str, int]] = {  # Peebles & Xie 2023, table 1; M, narrow and deep for long clips, is not theirs
    "S": {"width": 384, "depth": 12, "heads": 6},
    "M": {"width": 512, "depth": 24, "heads": 8},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}


class DiTConfig(Config):
    """`size` is a shorthand for width, depth and heads; a value given beside it must agree with it."""

    type: Literal["dit"] = "dit"
    size: Literal["S", "M", "B", "L", "XL"] | None = None
    width: PositiveInt = 256
    depth: PositiveInt = 8
    heads: PositiveInt = 4
    patch: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 1, 1)  # latents a token covers: frames, height, width
    mlp_ratio: float = Field(default=4.0, gt=0)
    positions: Literal["rope", "sinusoidal"] = "rope"  # turned within attention, or sines added to the tokens
    layout: Literal["full", "factorised"] = "full"  # factorised: spatial and temporal blocks take turns
    text_tokens: Literal["cross", "joint", "pooled"] = "cross"  # attended to, among the visual, or their mean alone
    text_blocks: Literal["all", "spatial"] = "all"  # which blocks attend to the text; of a factorised layout
    parts: tuple[PositiveInt, ...] | None = None  # channels of the latents that are denoised apart, by a network each
    attention: AttentionName = "auto"
    gradient_checkpointing: Checkpointing = False

    @model_validator(mode="before")
    @classmethod
    def _apply_size(cls, values: Any) -> Any:
        preset = PRESETS.get(values.get("size") or "") if isinstance(values, dict) else None
        if preset is None:
            return values
        for name, value in preset.items():
            if values.get(name, value) != value:
                raise ValueError(
                    f"size = {values['size']} means {name} = {value}, but {name} = {values[name]} is given; give one"
                )
        return {**values, **preset}

    @model_validator(mode="after")
    def _check(self) -> DiTConfig:
        head_dim, rest = divmod(self.width, self.heads)
        if rest or (self.positions == "rope" and (head_dim % 2 or head_dim < 6)):
            raise ValueError(
                f"width = {self.width} over heads = {self.heads}: the head dimension must be a whole even number of at "
                f"least 6 (RoPE turns pairs on three axes); use for example width = "
                f"{max(6, 2 * round(head_dim / 2)) * self.heads}"
            )
        if self.parts is not None and len(self.parts) < 2:
            raise ValueError(f"parts = {list(self.parts)}: two or more; null for one network of all channels")
        if self.text_tokens == "joint" and self.layout != "full":
            raise ValueError(
                f"text_tokens = joint needs layout = full, got layout = {self.layout}: text tokens belong to no frame; "
                "use text_tokens = cross"
            )
        if self.text_blocks == "spatial" and (self.layout, self.text_tokens) != ("factorised", "cross"):
            raise ValueError(
                "text_blocks = spatial needs layout = factorised and text_tokens = cross, got "
                f"layout = {self.layout}, text_tokens = {self.text_tokens}; use text_blocks = all"
            )
        if self.layout == "factorised" and self.depth % 2:
            raise ValueError(
                f"depth = {self.depth}: layout = factorised takes spatial and temporal blocks in turn, so "
                f"depth must be even; use {self.depth + 1}"
            )
        return self

    def attends_to_text(self, block: int) -> bool:
        """Whether this block cross-attends to the text. Of a factorised layout the even ones are spatial."""
        return self.text_tokens == "cross" and (self.text_blocks == "all" or block % 2 == 0)

    def build(self, channels: int, text_width: int) -> DiT | PartedDiT:
        """The model, freshly initialised from torch's global generator.

        ValueError where the backend is missing, or the parts are not of so many channels.
        """
        return DiT(self, channels, text_width) if self.parts is None else PartedDiT(self, channels, text_width)


class Block(nn.Module):
    """adaLN-zero self-attention, cross-attention to text (if any), adaLN-zero MLP."""

    def __init__(self, width: int, heads: int, hidden: int, cross: bool, backend: str) -> None:
        super().__init__()
        self.self_attention = SelfAttention(width, heads, backend)
        self.cross_attention = CrossAttention(width, heads, backend) if cross else None
        self.mlp = MLP(width, hidden)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        rope: Rope | None,
        text_kv: Tensor | None,
        mask: Tensor | None,
        frames: int,
        across: bool,
    ) -> Tensor:
        """x `b n d`, modulation `b 6 d`, text_kv `b l 2*d`, mask over text (cross), all tokens (joint) or none."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation[:, :, None].unbind(1)  # b 1 d each
        own_mask = mask if self.cross_attention is None else None  # b n
        attended = self.self_attention(modulated_norm(x, shift1, scale1), rope, own_mask, frames, across)
        x = torch.addcmul(x, gate1, attended)  # b n d
        if self.cross_attention is not None and text_kv is not None:
            x = x + self.cross_attention(F.layer_norm(x, (x.shape[-1],), eps=1e-6), text_kv, mask)  # b n d
        return torch.addcmul(x, gate2, self.mlp(modulated_norm(x, shift2, scale2)))  # b n d


class DiT(nn.Module):
    """x_t `b c f h w`, t `b`, text `b l text_width` -> prediction `b c f h w`, for latents of any size.

    The timestep and the mean of the text drive adaLN-zero; the text tokens enter by cross-attention, as tokens among
    the visual ones, or not at all (`pooled`, the fastest: what a caption says is then one vector).
    The output head starts at zero, so an untrained model predicts exactly 0.
    """

    within: tuple[int, int] | None = None  # first frame of x_t and their number, where x_t is part of a longer video

    def __init__(self, config: DiTConfig, channels: int, text_width: int) -> None:
        super().__init__()
        check_attention(config.attention)
        self.config, self.channels, self.text_width = config, channels, text_width
        width, depth = config.width, config.depth
        attending = [config.attends_to_text(block) for block in range(depth)]
        self.lora_targets = ("qkv", "out", "up", "down", *(("q", "text_kv") if any(attending) else ()))
        patch_numbers = channels * config.patch[0] * config.patch[1] * config.patch[2]
        self.patch_in = nn.Linear(patch_numbers, width)
        self.position_in = nn.Linear(6 * OCTAVES, width, bias=False) if config.positions == "rope" else None
        self.time_in = TimestepEmbedding(width)
        self.text_norm = nn.LayerNorm(text_width)
        self.text_in = nn.Linear(text_width, width)
        self.pooled_in = nn.Linear(width, width)
        of_blocks = sum(attending) * 2 * width  # in one product
        self.text_kv = nn.Linear(width, of_blocks) if of_blocks else None
        hidden = round(width * config.mlp_ratio)
        self.blocks = nn.ModuleList(Block(width, config.heads, hidden, cross, config.attention) for cross in attending)
        self.modulation = zero_init(nn.Linear(width, (6 * depth + 2) * width))  # of every block and of the head
        self.head = zero_init(nn.Linear(width, patch_numbers))

    def check_size(self, latent: Size) -> Size:
        """The grid of patches of latents of this size. ValueError names the axis that does not divide."""
        for axis, patch in zip(("frames", "height", "width"), self.config.patch, strict=True):
            extent = getattr(latent, axis)
            if extent % patch:
                ways = nearest_multiples(extent, patch)
                raise ValueError(
                    f"{axis} = {extent} latents do not fit model.patch = {patch} along {axis}: it must be a multiple; "
                    f"use {ways} latents, or another patch"
                )
        return Size(*(extent // patch for extent, patch in zip(latent.tuple, self.config.patch, strict=True)))

    def forward(self, x_t: Tensor, t: Tensor, cond: Text) -> Tensor:
        check_inputs(x_t, t, cond, self.channels, self.text_width)
        grid = self.check_size(Size(*x_t.shape[2:])).tuple
        b, depth, width = x_t.shape[0], self.config.depth, self.config.width
        mask = needed_mask(cond.mask)  # b l, or None where every token is real

        x = self.patch_in(patchify(x_t, self.config.patch))  # b n d
        if self.position_in is not None:
            patch = self.config.patch[0]
            part = None if self.within is None else (self.within[0] / patch, self.within[1] / patch)
            x = x + self.position_in(coordinate_features(grid, OCTAVES, x.device, part).to(x_t.dtype))  # b n d
        else:
            x = x + sinusoids(grid, width, x.device).to(x_t.dtype)  # b n d
        text = self.text_in(self.text_norm(cond.values.to(x_t.dtype)))  # b l d
        context = self.time_in(t) + self.pooled_in(masked_mean(text, mask, cond.weights))  # b d
        modulation = self.modulation(F.silu(context)).view(b, 6 * depth + 2, width)  # b 6*depth+2 d
        *modulations, last = modulation.split([6] * depth + [2], dim=1)  # b 6 d each, b 2 d
        seen: list[tuple[Tensor | None, Tensor | None]] = [(None, None)] * depth  # text_kv and mask of every block
        if self.text_kv is not None:
            of_blocks = iter(self.text_kv(text).split(2 * width, dim=-1))  # b l 2*d each
            attending = map(self.config.attends_to_text, range(depth))
            seen = [(next(of_blocks), mask) if attends else (None, None) for attends in attending]
        layouts = self._layouts(grid, x.device)
        if self.config.text_tokens == "joint":
            x, mask = join_text(text, x, mask)  # b l+n d, b l+n
            seen = [(None, mask)] * depth
            layouts = [(rope and pad_rope(rope, text.shape[1]), frames, across) for rope, frames, across in layouts]

        for index, block in enumerate(self.blocks):
            rope, frames, across = layouts[index % len(layouts)]
            arguments = (x, modulations[index], rope, *seen[index], frames, across)
            x = run_block(block, recomputed(self.config.gradient_checkpointing, index), *arguments)  # b n d
        x = x[:, x.shape[1] - grid[0] * grid[1] * grid[2] :]  # b n d: without the joint text tokens
        shift, scale = last[:, :, None].unbind(1)  # b 1 d
        x = self.head(modulated_norm(x, shift, scale))  # b n c*pf*ph*pw
        return unpatchify(x, self.config.patch, grid).to(x_t.dtype)  # b c f h w

    def _layouts(self, grid: tuple[int, int, int], device: torch.device) -> list[tuple[Rope | None, int, bool]]:
        """How the blocks attend, in turn: the RoPE table of one group, the number of frames, within or across them."""
        frames, height, width = grid
        head_dim = self.config.width // self.config.heads
        if self.config.positions == "sinusoidal":
            full = self.config.layout == "full"
            return [(None, 1, False)] if full else [(None, frames, False), (None, frames, True)]
        if self.config.layout == "full":
            return [(rope_table(grid, head_dim, device), 1, False)]
        spatial = rope_table((1, height, width), head_dim, device)
        temporal = rope_table((frames, 1, 1), head_dim, device)
        return [(spatial, frames, False), (temporal, frames, True)]


class PartedDiT(nn.Module):
    """A DiT for each part of the latents' channels, none of which sees the others': same inputs and output as a DiT.

    For parts that captions alone tie together, as what a clip shows and how it moves. A network that sees both learns
    which go together in the data, and makes of a combination that it has not seen one that it has.
    """

    def __init__(self, config: DiTConfig, channels: int, text_width: int) -> None:
        super().__init__()
        counts = config.parts
        assert counts is not None, "one network of all channels is a DiT"
        if sum(counts) != channels:
            raise ValueError(
                f"parts = {list(counts)}: {sum(counts)} channels in all, but the codec's latents have {channels}; give "
                f"parts that make {channels}, or null for one network of all"
            )
        one = config.model_copy(update={"parts": None})
        self.config, self.channels, self.text_width, self.counts = config, channels, text_width, counts
        self.parts = nn.ModuleDict({str(i): DiT(one, count, text_width) for i, count in enumerate(counts)})
        self.lora_targets = self._networks[0].lora_targets

    @property
    def within(self) -> tuple[int, int] | None:
        return self._networks[0].within

    @within.setter
    def within(self, part: tuple[int, int] | None) -> None:
        for network in self._networks:
            network.within = part

    def check_size(self, latent: Size) -> Size:
        """As `DiT.check_size`."""
        return self._networks[0].check_size(latent)

    def forward(self, x_t: Tensor, t: Tensor, cond: Text) -> Tensor:
        check_inputs(x_t, t, cond, self.channels, self.text_width)
        of_parts = enumerate(zip(self._networks, x_t.split(self.counts, dim=1), strict=True))
        return torch.cat([network(x, t, cond.of_part(part)) for part, (network, x) in of_parts], dim=1)

    @property
    def _networks(self) -> list[DiT]:
        return cast(list[DiT], list(self.parts.values()))


def sinusoids(grid: tuple[int, int, int], width: int, device: torch.device) -> Tensor:
    """`n d`: sines and cosines of each patch's place in time, height and width, a third of the width for each.

    Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, for a line of words. What the thirds leave is zero.
    """
    frequencies = rope_frequencies(width // 6, SLOWEST)
    places = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in grid), indexing="ij")
    angles = torch.cat([place.reshape(-1, 1) * frequencies for place in places], dim=1)  # n 3*d/6
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    return F.pad(table, (0, width - table.shape[1])).to(device)


def join_text(text: Tensor, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Text `b l d` before the visual tokens `b n d`, and the mask of both."""
    if mask is not None:
        mask = torch.cat([mask, mask.new_ones(x.shape[:2])], dim=1)  # b l+n
    return torch.cat([text, x], dim=1), mask


def pad_rope(rope: Rope, length: int) -> Rope:
    """The table with `length` positions before it that are not rotated: the encoder has given text its order."""
    cos, sin = rope
    return F.pad(cos, (0, 0, length, 0), value=1.0), F.pad(sin, (0, 0, length, 0))
