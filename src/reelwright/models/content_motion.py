"""A codec that keeps apart what a clip shows and how that moves, trained on the clips themselves.

How it moves is measured: a pose for every frame says where the thing is, how large, and how far it has turned. What it
shows is learned, some numbers of content for all frames of a block, read off the thing upright, in the middle and
always of one size, so that content cannot come to depend on how things move. Each frame is drawn by itself, by a
network that is told where a patch lies as seen from the thing. What was learned of a thing in one place is then known
in all of them, and what of one motion in all, so that a denoiser trained on some combinations draws others.

A latent is principal components of the content and of the poses of all frames together: motions are smooth, so few are
enough, and what is drawn from few is smooth. Half-whitened, they are learned in the order of their size.

That a clip is some content and a small motion is how Yu et al. 2024 make it cheap to generate ("Efficient Video
Diffusion Models via Content-Frame Motion-Latent Decomposition", arXiv 2403.14148); drawing in the coordinates of what
has the pose is of Hinton et al. 2011 ("Transforming Auto-Encoders") and Biza et al. 2023 ("Invariant Slot Attention",
arXiv 2302.04973). There is one pose a block: this is for clips of one moving thing that stands out from its ground.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from reelwright.models.codec import Block, PCACodecConfig, principal_components
from reelwright.models.decoding import at_once
from reelwright.models.layers import MLP, TransformerBlock, coordinate_features, patchify, unpatchify
from reelwright.models.poses import ANGLE, PLACE, POSE, SIZE, measured_poses, places, rotations, turned, views
from reelwright.models.trained_codec import (
    FIT_BLOCKS,
    OCTAVES,
    SMALLEST_VARIANCE,
    Attempt,
    Augment,
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
from reelwright.randomness import keyed_generator
from reelwright.types import Compression, Size

READ_FRAMES = 4  # of a block at most, evenly spaced: all show the same content
REACH = 2.5  # RMS distances from the middle of what is read to its edge: a triangle's corners are at 2
UNIT = 0.25  # of the coordinates in which things are drawn: so large the RMS distance is in them
SIZES = (-6.0, 1.0)  # logarithms of the smallest and largest RMS distance that is drawn
FARTHEST = 2.0  # of those coordinates; farther away all is ground
POSE_NOISE = 0.02  # of the pose's deviation, in training: a denoiser's errors in it are small, content's are not
LEAST_DEVIATION = 0.05  # of a pose's number: what varies less, half heights, radians or in size, counts for less
WHITEN = 0.5  # of the components that are latents: divided by their deviation to that power


class ContentMotionConfig(TrainedCodecConfig):
    """Clips of one moving thing."""

    type: Literal["content_motion"] = "content_motion"
    block: Block = (16, 64, 64)  # frames, height, width that one latent position covers
    content_channels: PositiveInt = 24  # of a latent: principal components of what is shown
    motion_channels: PositiveInt = 20  # the same of the poses of all frames
    content: PositiveInt = 48  # numbers between the networks that say what is shown
    patch: PositiveInt = 8  # height and width of what one token of the networks covers
    patch_channels: PositiveInt = 48  # principal components kept of a patch: a bound of the round trip
    view: PositiveInt = 32  # height and width at which the thing is read
    frames_per_step: PositiveInt = 2  # of a block, drawn anew at every training step
    turned: float = Field(default=0.3, ge=0, le=1)  # share of the frames trained on that are turned by some angle
    width: PositiveInt = 192
    heads: PositiveInt = 3
    encoder_depth: PositiveInt = 1
    decoder_depth: PositiveInt = 1
    optimizer: Literal["adamw", "muon"] = "muon"
    align: float = Field(default=1.0, ge=0)
    additive: float = Field(default=2.0, ge=0)
    augment: Augment = "colours"

    @property
    def channels(self) -> int:
        """Numbers of a latent: content, then motion."""
        return self.content_channels + self.motion_channels

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a block along height and width."""
        return self.block[1] // self.patch, self.block[2] // self.patch

    @property
    def view_extents(self) -> tuple[int, int, int]:
        """Frames of a block that are read, and patches of one along height and width."""
        return min(READ_FRAMES, self.block[0]), self.view // self.patch, self.view // self.patch

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(block % self.patch for block in self.block[1:]):
            raise ValueError(
                f"block = {list(self.block)}: its height and width must be whole multiples of patch = {self.patch}"
            )
        if self.view % self.patch:
            raise ValueError(f"view = {self.view}: it must be a whole multiple of patch = {self.patch}")
        if self.frames_per_step > self.block[0]:
            raise ValueError(f"frames_per_step = {self.frames_per_step}: a block has {self.block[0]} frames (block)")
        if self.content_channels > self.content:
            raise ValueError(f"content_channels = {self.content_channels}: there are content = {self.content} numbers")
        if self.motion_channels > POSE * self.block[0]:
            raise ValueError(
                f"motion_channels = {self.motion_channels}: the poses of {self.block[0]} frames (block) are "
                f"{POSE * self.block[0]} numbers"
            )
        if self.batch_size < 2:
            raise ValueError("batch_size = 1: what clips show is told by how they differ; use 2 or more")
        if self.augment == "all":
            raise ValueError("augment = all: poses are of the clips as they are, not mirrored; use colours or none")
        check_heads(self.width, self.heads)
        check_patch_channels(self.patch_channels, (1, self.patch, self.patch))
        return self

    @property
    def components(self) -> PCACodecConfig:
        """The linear codec of patches of single frames whose coefficients are read and drawn."""
        block = (1, self.patch, self.patch)
        return PCACodecConfig(block=block, channels=self.patch_channels, whiten=self.whiten, fit_blocks=FIT_BLOCKS)

    def build(self) -> ContentMotion:
        return ContentMotion(self)


class ContentMotion(TrainedCodec):
    """Views of the thing -> transformer -> content; content and measured poses -> a network of coordinates -> frames.

    In shapes m is blocks of all clips, f a block's frames, r those that are read, n patches, d the width.
    """

    config: ContentMotionConfig
    frames_apart = True

    def __init__(self, config: ContentMotionConfig) -> None:
        super().__init__(config, config.components.build(), config.channels, Compression(*config.block))
        self.named_channels = config.content
        width, tokens = config.width, config.patch_channels
        self.patch_in = nn.Linear(tokens, width)
        self.encoder_position = nn.Linear(6 * OCTAVES, width, bias=False)
        self.encoder = nn.ModuleList(TransformerBlock(width, config.heads) for _ in range(config.encoder_depth))
        self.encoder_norm = nn.LayerNorm(width)
        self.content_out = nn.Linear(width, config.content)
        self.content_in = nn.Linear(config.content, width)
        self.pose_in = nn.Linear(4, width)
        self.decoder_position = nn.Linear(6 * OCTAVES, width, bias=False)
        self.seen_from = nn.Linear(4 * OCTAVES, width, bias=False)
        self.decoder = nn.ModuleList(CoordinateBlock(width) for _ in range(config.decoder_depth))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, tokens))
        self.register_buffer("trained_in_bf16", torch.tensor(False))
        self.trained_in_bf16: Tensor
        self.kept_content = Components(config.content, config.content_channels)
        self.kept_motion = Components(POSE * config.block[0], config.motion_channels)
        self.register_buffer("places", places(*config.grid).flatten(0, 1), persistent=False)
        self.places: Tensor  # n 2: of the patches' centres
        self.requires_grad_(False).eval()

    def examples(self, video: Tensor, generator: torch.Generator | None = None) -> Examples:
        """With a generator some of the frames to be drawn are turned further, as few things turn by themselves."""
        block, size = self.config.block, self.compression.latent_size(Size(*video.shape[2:])).tuple

        def joined(blocks: Tensor, extents: tuple[int, int, int]) -> Tensor:  # m ... of these extents -> b c f h w
            return unpatchify(blocks.flatten(1).unflatten(0, (len(video), -1)), extents, size)

        blocks = patchify(video, block).flatten(0, 1).unflatten(1, (3, *block))  # m 3 f h w
        poses, nearest = measured_poses(blocks)  # m f POSE, m f
        frames, side = self.config.view_extents[0], self.config.view
        chosen = nearest[:, torch.linspace(0, block[0] - 1, frames).round().long()]  # m r
        rows = torch.arange(len(blocks), device=video.device)[:, None]
        shown = blocks.transpose(1, 2)[rows, chosen].transpose(1, 2)  # m 3 r h w
        read = views(shown, poses[rows, chosen], side, REACH)  # m 3 r side side
        tokens = self.components.encode(joined(read, (frames, side, side))).mean
        wanted = None
        if generator is not None:
            further = torch.rand(poses.shape[:2], generator=generator) * 2 * math.pi - math.pi  # m f
            further = further * (torch.rand(poses.shape[:2], generator=generator) < self.config.turned)
            blocks = turned(blocks, further.to(video.device), poses)
            wanted = self.components.encode(joined(blocks, block)).mean
            poses[..., ANGLE] += further.to(video.device)
        return Examples(tokens, wanted, joined(poses.movedim(2, 1), (block[0], 1, 1)))

    def to_latents(self, clips: Examples) -> Tensor:
        content, poses = self._content_and_poses(clips)
        latents = torch.cat([self.kept_content.of(content), self.kept_motion.of(poses.flatten(1))], dim=1)  # m channels
        frames, height, width = self.config.view_extents
        b, _, *extents = clips.read.shape
        coarse = (extents[0] // frames, extents[1] // height, extents[2] // width)
        return latents.unflatten(0, (b, *coarse)).movedim(-1, 1)

    def from_latents(self, latents: Tensor) -> Tensor:
        b, _, *coarse = latents.shape
        flat = latents.movedim(1, -1).flatten(0, 3)  # m channels
        content = self.kept_content.back(flat[:, : self.config.content_channels])
        poses = self.kept_motion.back(flat[:, self.config.content_channels :]).unflatten(1, (-1, POSE))
        pairs = zip(self._some_blocks(content), self._some_blocks(poses), strict=True)
        drawn = torch.cat([self.draw(*some) for some in pairs])  # m f n k
        merged = drawn.permute(0, 3, 1, 2).flatten(1).unflatten(0, (b, -1))  # b blocks k*f*n
        return unpatchify(merged, (self.config.block[0], *self.config.grid), (coarse[0], coarse[1], coarse[2]))

    def look(self, tokens: Tensor) -> Tensor:
        """Components of views `m r n k` -> content `m content`, a mean over them."""
        m, r = tokens.shape[:2]
        x = self.patch_in(tokens.flatten(0, 1))  # m*r n d
        head_dim = self.config.width // self.config.heads
        x = transformed(x, Size(1, *self.config.view_extents[1:]), self.encoder_position, self.encoder, head_dim)
        return self.content_out(self.encoder_norm(x).mean(dim=1)).unflatten(0, (m, r)).mean(dim=1)

    def draw(self, content: Tensor, poses: Tensor) -> Tensor:
        """Content `m content` in the poses `m f POSE` -> components of the frames, `m f n k`."""
        m, f = poses.shape[:2]
        with torch.autocast(poses.device.type, enabled=False):  # a place in bfloat16 would tremble
            poses = poses.flatten(0, 1).float()  # m*f POSE
            size = poses[:, SIZE, None, None].clamp(*SIZES)  # m*f 1 1
            into = rotations(poses[:, ANGLE]) * (UNIT * (-size).exp())  # m*f 2 2
            seen = (self.places - poses[:, None, PLACE]) @ into  # m*f n 2: the patches' places, as seen from the thing
        shown = self.content_in(content).repeat_interleave(f, dim=0) + self.pose_in(into.flatten(1))  # m*f d
        position = self.decoder_position(coordinate_features((1, *self.config.grid), OCTAVES, poses.device))  # n d
        x = self.seen_from(_waves(seen.clamp(-FARTHEST, FARTHEST))) + position + shown[:, None]  # m*f n d
        for block in self.decoder:
            x = block(x)
        return self.head(x).unflatten(0, (m, f))

    @property
    def encodes_in_bf16(self) -> bool:
        """As it was trained, for a third of the time; poses and components are in float32 all the same."""
        return bool(self.trained_in_bf16)

    def attempt(self, clips: Examples, generator: torch.Generator) -> Attempt:
        read, wanted, poses = self._drawn_frames(clips, generator)
        noisy = noised(normalised(self.look(read).float())[0], self.config.latent_noise, generator)
        noise = torch.randn(poses.shape, generator=generator).to(poses.device)
        poses = poses + POSE_NOISE * poses.std(dim=(0, 1), correction=0) * noise
        return Attempt(noisy[..., None], self.draw(noisy, poses), wanted)

    def settle(self, trained: Iterable[Examples], plain: Iterable[Examples]) -> None:
        generator = keyed_generator("frames of the statistics")
        chosen = (self._drawn_frames(clips, generator)[0] for clips in trained)
        fold_normalisation(self.content_out, (self.look(read).float() for read in chosen))
        both = [self._content_and_poses(clips) for clips in plain]
        contents, poses = torch.cat([content for content, _ in both]), torch.cat([poses for _, poses in both])
        self.kept_content.fit(contents, contents.new_ones(contents.shape[1]))
        unit = poses.flatten(0, 1).std(dim=0, correction=0).clamp_min(LEAST_DEVIATION)  # POSE
        self.kept_motion.fit(poses.flatten(1), unit.repeat(poses.shape[1]))
        self.trained_in_bf16.fill_(torch.is_autocast_enabled(poses.device.type))
        self.latent_std.fill_(1.0)  # the components come in their own scale

    def _content_and_poses(self, clips: Examples) -> tuple[Tensor, Tensor]:
        """Of clips as they are: `m content` and `m f POSE`."""
        assert clips.poses is not None, "examples of this codec have poses"
        looks = [self.look(some) for some in self._some_blocks(self._blocks(clips.read, self.config.view_extents))]
        return torch.cat(looks).float(), self._blocks(clips.poses, (self.config.block[0], 1, 1))[:, :, 0]

    def _drawn_frames(self, clips: Examples, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Of one block of each clip some views `b f' n k`, and other frames that are wanted `b f' n k` in their poses.

        The poses are `b f' POSE`.
        """
        assert clips.wanted is not None and clips.poses is not None, "these are examples for training"
        b, frames = len(clips.read), self.config.block[0]
        read = self._blocks(clips.read, self.config.view_extents)  # m r n k
        wanted = self._blocks(clips.wanted, (frames, *self.config.grid))  # m f n k
        poses = self._blocks(clips.poses, (frames, 1, 1))[:, :, 0]  # m f POSE
        count = len(read) // b
        rows = torch.arange(b)[:, None] * count + torch.randint(count, (b, 1), generator=generator)
        looked_at, chosen = (
            torch.rand((b, x.shape[1]), generator=generator).argsort(dim=1)[:, : self.config.frames_per_step]
            for x in (read, wanted)
        )
        return read[rows, looked_at], wanted[rows, chosen], poses[rows, chosen]

    @staticmethod
    def _blocks(x: Tensor, extents: tuple[int, int, int]) -> Tensor:
        """`b k f h w` of clips, a block having so many along f, h and w -> of their blocks, `m f n k`."""
        blocks = patchify(x, extents).flatten(0, 1)  # m k*f*n
        return blocks.view(len(blocks), x.shape[1], extents[0], -1).permute(0, 2, 3, 1)

    def _some_blocks(self, of_blocks: Tensor) -> tuple[Tensor, ...]:
        """`m ...` in parts that a network works on together."""
        frames, height, width = self.config.block
        return of_blocks.split(at_once(frames * height * width))


class Components(nn.Module):
    """Principal components of numbers, half-whitened, of unit RMS over all."""

    def __init__(self, numbers: int, kept: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("into", torch.zeros(numbers, kept))
        self.register_buffer("out", torch.zeros(kept, numbers))
        self.mean: Tensor
        self.into: Tensor
        self.out: Tensor

    def fit(self, x: Tensor, unit: Tensor) -> None:
        """x `n numbers`; `unit` of each number, in which deviations count."""
        x = x.double()
        mean = x.mean(dim=0)
        centred = (x - mean) / unit
        basis, variance = principal_components(centred.T @ centred / len(x), self.into.shape[1])
        deviation = variance.clamp_min(SMALLEST_VARIANCE).sqrt()  # kept
        gain = deviation**-WHITEN
        gain = gain / (gain * deviation).square().mean().sqrt()
        self.mean.copy_(mean)
        self.into.copy_(basis * gain / unit[:, None])
        self.out.copy_((basis / gain).T * unit)

    def of(self, x: Tensor) -> Tensor:
        """`n numbers` -> `n kept`."""
        with torch.autocast(x.device.type, enabled=False):
            return (x.float() - self.mean) @ self.into

    def back(self, components: Tensor) -> Tensor:
        """`n kept` -> `n numbers`, as far as so many components say."""
        return components @ self.out + self.mean


class CoordinateBlock(nn.Module):
    """A pre-norm MLP: patches have nothing to tell each other that content and pose do not tell them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


def _waves(places: Tensor) -> Tensor:
    """`... 2` -> sines and cosines of them `... 4*OCTAVES`, the longest four units: they go from -2 to 2."""
    turns = math.pi * 2.0 ** torch.arange(-1, OCTAVES - 1, device=places.device)
    angles = places[..., None] * turns  # ... 2 octaves
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
