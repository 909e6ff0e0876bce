"""What the codecs that `prepare` trains on the clips themselves share: settings, the way in and out, noisy latents.

The latents are trained to survive noise (Yang et al. 2025, "Latent Denoising Makes Good Visual Tokenizers", arXiv
2507.15856), so that a denoiser's small errors are drawn as clean pictures too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from reelwright.config import Config
from reelwright.models.codec import BlockCodec
from reelwright.models.foreign import content_hash
from reelwright.models.layers import coordinate_features, rope_table
from reelwright.types import Compression, Posterior, Size

OCTAVES = 6  # of the absolute positions, as in the DiT
FIT_BLOCKS = 32768  # patches the principal components are of
SMALLEST_VARIANCE = 1e-4  # of whatever is divided by its deviation

Augment = Literal["none", "colours", "all"]


class TrainedCodecConfig(Config):
    """`build().fit(videos)` trains one; `prepare` does so where there is none yet."""

    whiten: float = Field(default=0.5, ge=0, le=1)  # 0: errors count as in pixels; 1: in every component alike
    align: float = Field(default=0.0, ge=0)  # weight of naming the captions' words by the noisy latents
    additive: float = Field(default=0.0, ge=0)  # weight of the noisy latents' mean being a sum over those words
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: half the steps for the same error
    steps: PositiveInt = 2000
    batch_size: PositiveInt = 16
    learning_rate: float = Field(default=3e-3, gt=0)
    latent_noise: float = Field(default=0.3, ge=0, le=1)  # the largest share of noise mixed into a training latent
    augment: Augment = "colours"  # exchange red, green, blue; also mirror, transpose, reverse
    fit_clips: PositiveInt = 4096  # at most so many clips are trained on


class Examples(NamedTuple):
    """Clips as a codec reads them, and as it is to draw them: components of patches."""

    read: Tensor  # b k f h w
    wanted: Tensor | None = None  # b k f h w; None: those that were read
    poses: Tensor | None = None  # b pose f h' w': of what is wanted, a block's frames each, where they are measured


class Attempt(NamedTuple):
    """What a codec in training made of a batch."""

    noisy: Tensor  # b c ...: of each clip the latents that are to name its captions' words, with noise
    predicted: Tensor  # the components drawn from them
    wanted: Tensor  # the components that were to come out


class TrainedCodec(nn.Module, ABC):
    """`b 3 f h w` -> principal components of patches -> latents `b channels f' h' w'`, and back."""

    needs_fit = True

    def __init__(
        self, config: TrainedCodecConfig, components: BlockCodec, channels: int, compression: Compression
    ) -> None:
        super().__init__()
        self.config, self.components, self.channels, self.compression = config, components, channels, compression
        self.named_channels = channels  # of an attempt's `noisy`
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_std", torch.zeros(channels))  # zero until fitted
        self.latent_mean: Tensor
        self.latent_std: Tensor

    def examples(self, video: Tensor, generator: torch.Generator | None = None) -> Examples:
        """Of clips `b 3 f h w`: as they are, or, with a generator, as they are trained on."""
        del generator
        return Examples(self.components.encode(video).mean)

    @abstractmethod
    def to_latents(self, clips: Examples) -> Tensor:
        """Clips as they are -> latents as the network has them, `b channels f' h' w'`."""

    @abstractmethod
    def from_latents(self, latents: Tensor) -> Tensor:
        """Inverse of `to_latents`, as far as it was learned."""

    @property
    def encodes_in_bf16(self) -> bool:
        """Whether `encode` has its products in bfloat16, on whatever machine: part of what is saved."""
        return False

    @abstractmethod
    def attempt(self, clips: Examples, generator: torch.Generator) -> Attempt:
        """A training step's way through the codec, with noise drawn from `generator`."""

    @abstractmethod
    def settle(self, trained: Iterable[Examples], plain: Iterable[Examples]) -> None:
        """Fold what training normalised by the batch into the weights, then measure the latents.

        From batches of clips as they were trained on, and as they are.
        """

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

        `captions` of each video, where `align` or `additive` wants them; the list may be filled while the videos are
        read. The result depends on these and the settings alone. UserError for too few patches or videos without
        variation.
        """
        from reelwright.models.codec_fit import train_codec

        train_codec(self, videos, on_step, dtype, captions)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Posterior:
        """`b 3 f h w` in [-1, 1] -> posterior without variance, mean `b channels f' h' w'` of unit RMS.

        ValueError where the size is no whole number of blocks.
        """
        self._check_fitted()
        self.compression.latent_size(Size(*video.shape[2:]))
        clips, half = self.examples(video), self.encodes_in_bf16
        with torch.autocast(video.device.type, dtype=torch.bfloat16 if half else None, enabled=half):
            raw = self.to_latents(clips).float()
        return Posterior((raw - _channel(self.latent_mean)) / _channel(self.latent_std))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """`b channels f' h' w'` -> `b 3 f h w`, clamped to [-1, 1]."""
        self._check_fitted()
        with torch.autocast(latents.device.type, enabled=False):
            raw = latents.float() * _channel(self.latent_std) + _channel(self.latent_mean)
            return self.components.decode(self.from_latents(raw))

    def fingerprint(self) -> str:
        """sha256 over the settings and everything trained."""
        return content_hash(self.config.plain(), self.state_dict())

    def _check_fitted(self) -> None:
        if not self.fitted:
            raise ValueError(f"the {type(self).__name__} is not trained; call fit(videos) or load its weights")


def check_heads(width: int, heads: int) -> None:
    """ValueError where RoPE cannot turn pairs on three axes."""
    head_dim, rest = divmod(width, heads)
    if rest or head_dim % 2 or head_dim < 6:
        raise ValueError(
            f"width = {width} over heads = {heads}: the head dimension must be a whole even number of at least 6 "
            "(RoPE turns pairs on three axes)"
        )


def check_patch_channels(patch_channels: int, patch: tuple[int, int, int]) -> None:
    """ValueError where a patch has fewer numbers than components are kept."""
    numbers = 3 * math.prod(patch)
    if patch_channels > numbers:
        raise ValueError(
            f"patch_channels = {patch_channels}: a patch of {list(patch)} has only {numbers} numbers (RGB)"
        )


def transformed(x: Tensor, size: Size, position: nn.Linear, blocks: nn.ModuleList, head_dim: int) -> Tensor:
    """Tokens `b n d` of a grid of `size`, told their places, through transformer blocks."""
    x = x + position(coordinate_features(size.tuple, OCTAVES, x.device))  # b n d
    rope = rope_table(size.tuple, head_dim, x.device)  # n e
    for block in blocks:
        x = block(x, rope)  # b n d
    return x


def normalised(latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents `b c ...` with each channel's mean 0 and deviation 1 over the batch, that mean and that deviation."""
    dims = (0, *range(2, latents.ndim))
    mean = latents.mean(dims, keepdim=True)
    std = (latents.var(dims, keepdim=True, correction=0) + SMALLEST_VARIANCE).sqrt()
    return (latents - mean) / std, mean, std


def fold_normalisation(linear: nn.Linear, outputs: Iterable[Tensor]) -> None:
    """Have `linear` give what `normalised` made of its batches of outputs `b c ...` in training, on average."""
    taken = [normalised(batch)[1:] for batch in outputs]
    mean = torch.stack([mean for mean, _ in taken]).mean(0).flatten()  # c
    std = torch.stack([std for _, std in taken]).mean(0).flatten()  # c
    linear.weight.div_(std[:, None])
    linear.bias.sub_(mean).div_(std)


def noised(latents: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Each clip's latents `b c ...` mixed with noise, a share of it drawn from [0, most)."""
    share = torch.rand((len(latents), *[1] * (latents.ndim - 1)), generator=generator) * most
    noise = torch.randn(latents.shape, generator=generator)
    return torch.lerp(latents, noise.to(latents.device), share.to(latents.device))


def _channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1, 1)
