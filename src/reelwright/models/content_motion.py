"""A codec that keeps apart what a clip shows and how that moves, trained on the clips themselves.

The networks have some numbers of content, the same for all frames of a block, and a pose for every frame: where
something is, and how it is turned, stretched and scaled there. Each frame is read by itself, so that content cannot
come to depend on how things move; each is drawn by itself, by a network that is told where a patch lies as seen from
the thing that moves. What was learned of a thing in one place is then known in all of them, and what of one motion in
all, so that a denoiser trained on some combinations draws others.

A latent is principal components of the content and of the poses of all frames together: motions are smooth, so few are
enough, and what is drawn from few is smooth. Half-whitened, they are learned in the order of their size.

That a clip is some content and a small motion is how Yu et al. 2024 make it cheap to generate ("Efficient Video
Diffusion Models via Content-Frame Motion-Latent Decomposition", arXiv 2403.14148); a pose that comes with what has it,
and drawing in its coordinates, are of Hinton et al. 2011 ("Transforming Auto-Encoders") and Biza et al. 2023
("Invariant Slot Attention", arXiv 2302.04973). There is one pose a block: this is for clips of one moving thing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from reelwright.models.codec import Block, PCACodecConfig, principal_components
from reelwright.models.decoding import at_once
from reelwright.models.layers import MLP, TransformerBlock, coordinate_features, patchify, unpatchify
from reelwright.models.symmetry import turned_frames
from reelwright.models.trained_codec import (
    FIT_BLOCKS,
    OCTAVES,
    SMALLEST_VARIANCE,
    Attempt,
    Augment,
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

MATRIX = slice(2, 6)  # of a pose, after its place (down, right): 2 x 2
SMALL = 0.3  # of the matrix's numbers beside the identity's: training begins near it
SHIFT = 0.25  # of a patch's own word on where the thing is, beside its place in the picture
POSE_NOISE = 0.02  # of the pose's deviation, in training: a denoiser's errors in it are small, content's are not
WHITEN = 0.5  # of the components that are latents: divided by their deviation to that power


class ContentMotionConfig(TrainedCodecConfig):
    """Clips of one moving thing."""

    type: Literal["content_motion"] = "content_motion"
    block: Block = (16, 64, 64)  # frames, height, width that one latent position covers
    content_channels: PositiveInt = 24  # of a latent: principal components of what is shown
    motion_channels: PositiveInt = 20  # the same of the poses of all frames
    content: PositiveInt = 48  # numbers between the networks that say what is shown
    patch: tuple[PositiveInt, PositiveInt] = (8, 8)  # height, width of what one token of the networks covers
    patch_channels: PositiveInt = 48  # principal components kept of a patch: a bound of the round trip
    frames_per_step: PositiveInt = 2  # of a block, drawn anew at every training step
    free_pose: NonNegativeInt = 0  # numbers of a frame's pose beside place and matrix, whose meaning is learned
    turned: float = Field(default=0.0, ge=0, le=1)  # share of the frames trained on that are turned by some angle
    width: PositiveInt = 192
    heads: PositiveInt = 3
    encoder_depth: PositiveInt = 1
    decoder_depth: PositiveInt = 1
    optimizer: Literal["adamw", "muon"] = "muon"
    align: float = Field(default=1.0, ge=0)
    augment: Augment = "colours"

    @property
    def channels(self) -> int:
        """Numbers of a latent: content, then motion."""
        return self.content_channels + self.motion_channels

    @property
    def pose(self) -> int:
        """Numbers of a frame's pose: a place, a matrix of 2 x 2, and free ones."""
        return MATRIX.stop + self.free_pose

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a block along height and width."""
        return self.block[1] // self.patch[0], self.block[2] // self.patch[1]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(block % patch for block, patch in zip(self.block[1:], self.patch, strict=True)):
            raise ValueError(
                f"block = {list(self.block)}: its height and width must be whole multiples of patch = "
                f"{list(self.patch)}"
            )
        if self.frames_per_step > self.block[0]:
            raise ValueError(f"frames_per_step = {self.frames_per_step}: a block has {self.block[0]} frames (block)")
        if self.content_channels > self.content:
            raise ValueError(f"content_channels = {self.content_channels}: there are content = {self.content} numbers")
        if self.motion_channels > self.pose * self.block[0]:
            raise ValueError(
                f"motion_channels = {self.motion_channels}: the poses of {self.block[0]} frames (block) are "
                f"{self.pose * self.block[0]} numbers"
            )
        if self.batch_size < 2:
            raise ValueError("batch_size = 1: what clips show is told by how they differ; use 2 or more")
        check_heads(self.width, self.heads)
        check_patch_channels(self.patch_channels, (1, *self.patch))
        return self

    @property
    def components(self) -> PCACodecConfig:
        """The linear codec of patches of single frames whose coefficients are read and drawn."""
        block = (1, *self.patch)
        return PCACodecConfig(block=block, channels=self.patch_channels, whiten=self.whiten, fit_blocks=FIT_BLOCKS)

    def build(self) -> ContentMotion:
        return ContentMotion(self)


class ContentMotion(TrainedCodec):
    """Frames -> transformer -> content and poses -> a network of coordinates -> frames.

    In shapes m is blocks of all clips, f a block's frames, n its patches, d the width.
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
        self.where = nn.Linear(width, 3)  # how much a patch has to say, and its shift
        self.content_out = nn.Linear(width, config.content)
        self.pose_out = nn.Linear(width, config.pose - 2)  # all but the place
        self.content_in = nn.Linear(config.content, width)
        self.pose_in = nn.Linear(config.pose - 2, width)
        self.decoder_position = nn.Linear(6 * OCTAVES, width, bias=False)
        self.seen_from = nn.Linear(4 * OCTAVES, width, bias=False)
        self.decoder = nn.ModuleList(CoordinateBlock(width) for _ in range(config.decoder_depth))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, tokens))
        self.register_buffer("trained_in_bf16", torch.tensor(False))
        self.trained_in_bf16: Tensor
        self.kept_content = Components(config.content, config.content_channels)
        self.kept_motion = Components(config.pose * config.block[0], config.motion_channels)
        self.register_buffer("places", _places(config.grid), persistent=False)
        self.places: Tensor  # n 2: of the patches' centres
        self.requires_grad_(False).eval()

    def to_latents(self, tokens: Tensor) -> Tensor:
        looks = [self.look(some) for some in self._some_blocks(self._blocks(tokens))]
        content = torch.cat([content for content, _ in looks])  # m content
        poses = torch.cat([poses for _, poses in looks]).flatten(1)  # m f*pose
        latents = torch.cat([self.kept_content.of(content), self.kept_motion.of(poses)], dim=1)  # m channels
        down, right = self.config.grid
        coarse = (tokens.shape[2] // self.config.block[0], tokens.shape[3] // down, tokens.shape[4] // right)
        return latents.unflatten(0, (len(tokens), *coarse)).movedim(-1, 1)

    def from_latents(self, latents: Tensor) -> Tensor:
        b, _, *coarse = latents.shape
        flat = latents.movedim(1, -1).flatten(0, 3)  # m channels
        content = self.kept_content.back(flat[:, : self.config.content_channels])
        poses = self.kept_motion.back(flat[:, self.config.content_channels :]).unflatten(1, (-1, self.config.pose))
        pairs = zip(self._some_blocks(content), self._some_blocks(poses), strict=True)
        drawn = torch.cat([self.draw(*some) for some in pairs])  # m f n k
        merged = drawn.permute(0, 3, 1, 2).flatten(1).unflatten(0, (b, -1))  # b blocks k*f*n
        return unpatchify(merged, (self.config.block[0], *self.config.grid), (coarse[0], coarse[1], coarse[2]))

    def look(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Components of frames `m f n k` -> content `m content`, a mean over the frames, and poses `m f pose`."""
        m, f = tokens.shape[:2]
        x = self.patch_in(tokens.flatten(0, 1))  # m*f n d
        head_dim = self.config.width // self.config.heads
        x = transformed(x, Size(1, *self.config.grid), self.encoder_position, self.encoder, head_dim)
        with torch.autocast(x.device.type, enabled=False):  # a place in bfloat16 would tremble from frame to frame
            x = F.layer_norm(x.float(), (x.shape[-1],))
            said = self.where(x)  # m*f n 3
            weight = said[..., :1].softmax(dim=1)  # m*f n 1
            place = (weight * (self.places + SHIFT * said[..., 1:])).sum(dim=1)  # m*f 2
            thing = (weight * x).sum(dim=1)  # m*f d
            poses = torch.cat([place, self.pose_out(thing)], dim=1)  # m*f pose
            return self.content_out(thing).unflatten(0, (m, f)).mean(dim=1), poses.unflatten(0, (m, f))

    def draw(self, content: Tensor, poses: Tensor) -> Tensor:
        """Content `m content` in the poses `m f pose` -> components of the frames, `m f n k`."""
        m, f = poses.shape[:2]
        poses = poses.flatten(0, 1).float()  # m*f pose
        with torch.autocast(poses.device.type, enabled=False):
            matrix = torch.eye(2, device=poses.device) + SMALL * poses[:, MATRIX].unflatten(1, (2, 2))  # m*f 2 2
            seen = (self.places - poses[:, None, :2]) @ matrix  # m*f n 2: the patches' places, from the thing
        shown = self.content_in(content).repeat_interleave(f, dim=0) + self.pose_in(poses[:, 2:])  # m*f d
        position = self.decoder_position(coordinate_features((1, *self.config.grid), OCTAVES, poses.device))  # n d
        x = self.seen_from(_waves(seen)) + position + shown[:, None]  # m*f n d
        for block in self.decoder:
            x = block(x)
        return self.head(x).unflatten(0, (m, f))

    @property
    def encodes_in_bf16(self) -> bool:
        """As it was trained, for a third of the time; places and components are in float32 all the same."""
        return bool(self.trained_in_bf16)

    def varied(self, video: Tensor, generator: torch.Generator) -> Tensor:
        """How things look turned is learned late where few of them turn."""
        return turned_frames(video, self.config.turned, generator)

    def attempt(self, tokens: Tensor, generator: torch.Generator) -> Attempt:
        chosen = self._some_frames(tokens, generator)  # b f' n k
        content, poses = self.look(chosen)
        noisy = noised(normalised(content.float())[0], self.config.latent_noise, generator)
        noise = torch.randn(poses.shape, generator=generator).to(poses.device)
        poses = poses + POSE_NOISE * poses.detach().std(dim=(0, 1), correction=0) * noise
        return Attempt(noisy[..., None], self.draw(noisy, poses), chosen)

    def settle(self, trained: Iterable[Tensor], plain: Iterable[Tensor]) -> None:
        generator = keyed_generator("frames of the statistics")
        chosen = (self._some_frames(tokens, generator) for tokens in trained)
        fold_normalisation(self.content_out, (self.look(frames)[0].float() for frames in chosen))
        looks = [self.look(some) for tokens in plain for some in self._some_blocks(self._blocks(tokens))]
        contents = torch.cat([content for content, _ in looks])  # n content
        poses = torch.cat([poses for _, poses in looks])  # n f pose
        self.kept_content.fit(contents, contents.new_ones(contents.shape[1]))
        unit = poses.flatten(0, 1).std(dim=0, correction=0).clamp_min(SMALLEST_VARIANCE**0.5)  # pose
        self.kept_motion.fit(poses.flatten(1), unit.repeat(poses.shape[1]))
        self.trained_in_bf16.fill_(torch.is_autocast_enabled(poses.device.type))
        self.latent_std.fill_(1.0)  # the components come in their own scale

    def _blocks(self, tokens: Tensor) -> Tensor:
        """Components `b k f h w` of clips -> those of their blocks, `m f n k`."""
        frames, grid = self.config.block[0], self.config.grid
        blocks = patchify(tokens, (frames, *grid)).flatten(0, 1)  # m k*f*n
        return blocks.view(len(blocks), tokens.shape[1], frames, -1).permute(0, 2, 3, 1)

    def _some_blocks(self, of_blocks: Tensor) -> tuple[Tensor, ...]:
        """`m ...` in parts that a network works on together."""
        frames, height, width = self.config.block
        return of_blocks.split(at_once(frames * height * width))

    def _some_frames(self, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """Of components `b k f h w` those of one block of each clip and `frames_per_step` of its frames, `b f' n k`."""
        blocks = self._blocks(tokens).unflatten(0, (len(tokens), -1))  # b blocks f n k
        b, count, frames = blocks.shape[:3]
        rows = torch.arange(b)[:, None]
        block = torch.randint(count, (b, 1), generator=generator)
        chosen = torch.rand((b, frames), generator=generator).argsort(dim=1)[:, : self.config.frames_per_step]
        return blocks[rows, block, chosen]


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
        mean = x.mean(dim=0)
        centred = ((x - mean) / unit).double()
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


def _places(grid: tuple[int, int]) -> Tensor:
    """Centres of a block's patches, `n 2` (down, right), from -1 to 1 across the block."""
    axes = [(torch.arange(count, dtype=torch.float32) + 0.5) / count * 2 - 1 for count in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)


def _waves(places: Tensor) -> Tensor:
    """`... 2` -> sines and cosines of them `... 4*OCTAVES`, the longest four units: they go from -2 to 2."""
    turns = math.pi * 2.0 ** torch.arange(-1, OCTAVES - 1, device=places.device)
    angles = places[..., None] * turns  # ... 2 octaves
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
