"""How the autoencoder is trained on clips: one loop over mirrored and recoloured clips, squared error of pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reelwright.models.codec import pixels_to_video, video_to_pixels
from reelwright.randomness import keyed_generator
from reelwright.types import UserError

if TYPE_CHECKING:
    from reelwright.models.autoencoder import Autoencoder

MEMORY_BYTES = 1 << 30  # of clips held as pixels while training
WARMUP_STEPS = 100
FINAL_RATE = 0.02  # of the learning rate, where the cosine ends
GRADIENT_NORM = 1.0
MEASURED_CLIPS = 512  # at most, for the latents' final mean and deviation
SMALLEST_VARIANCE = 1e-4  # of a latent channel within a batch


def train_autoencoder(
    codec: Autoencoder, videos: Iterable[Tensor], on_step: Callable[[int, int], None], dtype: torch.dtype
) -> None:
    """Everything of `codec` that is fitted or trained: components, weights, the latents' mean and deviation."""
    config, device = codec.config, codec.latent_std.device
    clips = _held_in_memory(videos, config.fit_clips)  # uint8 n f h w 3 each, one a size
    codec.components.fit(_AsVideos(clips))
    codec.components.to(device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        _initialise(codec)
    codec.requires_grad_(True).train()
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(
        codec.parameters(), config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=fused
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.steps))
    for step in range(config.steps):
        generator = keyed_generator("autoencoder", step)
        pixels = _draw_batch(clips, config.batch_size, generator)
        if config.augment:
            pixels = augmented(pixels, generator)
        tokens = _tokens(codec, pixels)  # b k f h w
        with torch.enable_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            latents, _, _ = _normalised(codec.to_latents(tokens).float())
            predicted = codec.from_latents(_noised(latents, config.latent_noise, generator))
            loss = F.mse_loss(predicted.float(), tokens)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(codec.parameters(), GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        on_step(step + 1, config.steps)
    codec.requires_grad_(False).eval()
    _settle(codec, clips)


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 `b f h w 3`, the whole batch mirrored, turned and reversed by chance, its colours exchanged.

    A codec is of pictures, not of what they show: what these make of a clip is as good a clip to draw, and a colour or
    a direction that a kind of object never had in the data is then nothing new.
    """
    vertical, horizontal, backward, turned = (torch.rand(4, generator=generator) < 0.5).tolist()
    pixels = pixels[..., torch.randperm(3, generator=generator)]
    flipped = [axis for axis, wanted in ((1, backward), (2, vertical), (3, horizontal)) if wanted]
    pixels = pixels.flip(flipped) if flipped else pixels
    return pixels.transpose(2, 3) if turned and pixels.shape[2] == pixels.shape[3] else pixels


def _held_in_memory(videos: Iterable[Tensor], most: int) -> list[Tensor]:
    """The clips as bytes, those of one size together: at most `most`, evenly taken, of MEMORY_BYTES in all."""
    groups: dict[torch.Size, list[Tensor]] = {}
    count = len(videos) if isinstance(videos, Sized) else most
    kept = seen = seen_bytes = held_bytes = 0
    for video in videos:
        for clip in video_to_pixels(video):  # f h w 3
            seen_bytes += clip.numel()
            room = max(1, min(most, MEMORY_BYTES * (seen + 1) // seen_bytes))  # clips of the mean size so far
            if seen >= kept * max(1.0, count / room) and (held_bytes + clip.numel() <= MEMORY_BYTES or not kept):
                groups.setdefault(clip.shape, []).append(clip)
                kept, held_bytes = kept + 1, held_bytes + clip.numel()
            seen += 1
    if not groups:
        raise UserError("codec: there is no clip to train the autoencoder on")
    return [torch.stack(groups.pop(shape)) for shape in list(groups)]


class _AsVideos:
    """The clips held, as a linear codec's `fit` reads them: float `1 3 f h w`, of known number."""

    def __init__(self, clips: list[Tensor]) -> None:
        self._clips = clips

    def __len__(self) -> int:
        return sum(len(group) for group in self._clips)

    def __iter__(self) -> Iterator[Tensor]:
        for group in self._clips:
            for clip in group:
                yield pixels_to_video(clip[None])


def _draw_batch(clips: list[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """`count` clips of one size, with replacement; sizes as often as they have clips."""
    shares = torch.tensor([float(len(group)) for group in clips])
    group = clips[int(torch.multinomial(shares, 1, generator=generator))]
    return group[torch.randint(len(group), (count,), generator=generator)]


@torch.no_grad()
def _tokens(codec: Autoencoder, pixels: Tensor) -> Tensor:
    return codec.components.encode(pixels_to_video(pixels.to(codec.latent_std.device))).mean


def _initialise(codec: Autoencoder) -> None:
    """Fresh weights, drawn from torch's global generator: a fit does not depend on what came before it."""
    for module in codec.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.reset_parameters()


def _normalised(latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents `b c f h w` with each channel's mean 0 and deviation 1 over the batch, that mean and that deviation."""
    dims = (0, 2, 3, 4)
    mean = latents.mean(dims, keepdim=True)
    std = (latents.var(dims, keepdim=True, correction=0) + SMALLEST_VARIANCE).sqrt()
    return (latents - mean) / std, mean, std


def _noised(latents: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Each clip's latents mixed with noise, a share of it drawn from [0, most)."""
    share = torch.rand((len(latents), 1, 1, 1, 1), generator=generator) * most
    noise = torch.randn(latents.shape, generator=generator)
    return torch.lerp(latents, noise.to(latents.device), share.to(latents.device))


def _rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / min(WARMUP_STEPS, steps))
    return warm * max(FINAL_RATE, 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def _settle(codec: Autoencoder, clips: list[Tensor]) -> None:
    """Fold the batches' normalisation into the waist, then measure the latents of the clips as they are."""
    config = codec.config

    def batches(augment: bool) -> Iterable[Tensor]:
        for number in range(max(1, MEASURED_CLIPS // config.batch_size)):
            generator = keyed_generator("autoencoder statistics", number)
            pixels = _draw_batch(clips, config.batch_size, generator)
            pixels = augmented(pixels, generator) if augment else pixels
            yield codec.to_latents(_tokens(codec, pixels)).float()

    trained = [_normalised(latents)[1:] for latents in batches(config.augment)]
    mean = torch.stack([mean for mean, _ in trained]).mean(0).flatten()  # c
    std = torch.stack([std for _, std in trained]).mean(0).flatten()  # c
    codec.latent_out.weight.div_(std[:, None])
    codec.latent_out.bias.sub_(mean).div_(std)
    seen = [latents.transpose(0, 1).flatten(1).double() for latents in batches(augment=False)]  # c m each
    count = sum(latents.shape[1] for latents in seen)
    first = torch.stack([latents.sum(1) for latents in seen]).sum(0) / count
    second = torch.stack([latents.square().sum(1) for latents in seen]).sum(0) / count
    codec.latent_mean.copy_(first)
    codec.latent_std.copy_((second - first.square()).clamp_min(SMALLEST_VARIANCE).sqrt())
