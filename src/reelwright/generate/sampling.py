"""Captions or pictures -> latents -> videos: a model at work, whoever asked for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor

from reelwright.diffusion.guidance import Predict, guided, join_texts, make_denoise, switched
from reelwright.diffusion.sampler import (
    SAMPLERS,
    karras_times,
    sample_times,
    stretched_times,
    timestep_times,
    whole_timestep,
)
from reelwright.diffusion.schedule import Schedule
from reelwright.diffusion.windows import in_windows, repeated_noise
from reelwright.models.codec import pixels_to_video, video_to_pixels
from reelwright.models.decoding import in_pieces, latents_at_once
from reelwright.models.offload import Offload, on_device
from reelwright.pretrained.base import PretrainedDenoiser, generating
from reelwright.randomness import keyed_generator, keyed_normal
from reelwright.recipe import SamplingConfig
from reelwright.training.config import Precision
from reelwright.training.devices import autocast, resolve_device, resolve_precision
from reelwright.types import Bundle, Size, Text, UsageError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Compute:
    """Where generation runs. `offload`: "model" keeps on the device only the part at work, "block" only two blocks."""

    device: torch.device
    precision: Precision = "fp32"
    offload: Offload = "none"

    @classmethod
    def resolve(cls, device: str, precision: str, offload: str = "none") -> Compute:
        """From the command line's words. UsageError where they are unknown or not to be had here."""
        if precision not in get_args(Precision):
            raise UsageError(f"--precision {precision}: not one of {', '.join(get_args(Precision))}")
        if offload not in get_args(Offload):
            raise UsageError(f"--offload {offload}: not one of {', '.join(get_args(Offload))}")
        where = resolve_device(device)
        held = "none" if where.type == "cpu" else cast(Offload, offload)  # there is nowhere else to put a part
        return cls(where, resolve_precision(cast(Precision, precision), where), held)


def encode_prompts(bundle: Bundle, prompts: Sequence[str], compute: Compute) -> Text:
    """Captions -> embeddings `b l d` on the device."""
    encoder, device = bundle.text, compute.device
    with on_device(encoder, device, compute.offload), torch.no_grad(), autocast(device, compute.precision):
        return encoder(encoder.tokenize(list(prompts)).to(device))


def encode_pictures(
    bundle: Bundle, picture: np.ndarray, size: Size, seeds: Sequence[int], compute: Compute
) -> tuple[Text, Text]:
    """A picture uint8 `h w 3` as (cond, uncond) of one video a seed, whose noise on the picture is its own."""
    denoiser = cast(PretrainedDenoiser, bundle.denoiser)
    pixels = torch.from_numpy(picture.copy()).to(compute.device)
    noises = [keyed_normal((3, size.height, size.width), seed, "picture") for seed in seeds]
    with on_device(bundle.text, compute.device, compute.offload), _codec_at_work(bundle, compute):
        pairs = [denoiser.condition_on(pixels, bundle.codec, bundle.text, size, noise) for noise in noises]
    conds, unconds = zip(*pairs, strict=True)
    return join_texts(conds), join_texts(unconds)


def walk_times(sampling: SamplingConfig, schedule: Schedule) -> Tensor:
    """The times of a walk to data from pure noise, by timesteps from just below it, as settings have them; float64."""
    if sampling.spacing == "karras":
        return karras_times(sampling.steps, schedule, *sampling.noise_levels)
    if sampling.spacing == "timesteps":
        return timestep_times(sampling.steps, schedule)
    if sampling.shift_terminal is not None:
        return stretched_times(sampling.steps, schedule, sampling.shift_terminal)
    return sample_times(sampling.steps, grid=schedule.grid)


@torch.no_grad()
def sample_latents(
    bundle: Bundle,
    positive: Text,
    negative: Text,
    latent_size: Size,
    seeds: Sequence[int],
    sampling: SamplingConfig,
    compute: Compute,
    on_step: Progress | None = None,
) -> Tensor:
    """Latents `b c f h w` of one batch, from pure noise. Each video's depends on its own seed alone, not the batch."""
    shape = (bundle.codec.channels, *latent_size.tuple)
    noises = [keyed_normal(shape, seed, "latents") for seed in seeds]
    if sampling.window_noise == "repeated":
        window = latent_window(bundle, sampling, latent_size.frames)
        noises = [repeated_noise(noise, *window, seed) for noise, seed in zip(noises, seeds, strict=True)]
    noise = torch.stack(noises)
    generators = [keyed_generator(seed, "sampler") for seed in seeds]

    def draw_noise() -> Tensor:
        return torch.stack([torch.randn(shape, generator=g) for g in generators])

    times = walk_times(sampling, bundle.objective.schedule)
    return denoise_latents(bundle, noise, times, positive, negative, sampling, compute, draw_noise, on_step)


@torch.no_grad()
def denoise_latents(
    bundle: Bundle,
    x: Tensor,
    times: Tensor,
    positive: Text,
    negative: Text,
    sampling: SamplingConfig,
    compute: Compute,
    draw_noise: Callable[[], Tensor],
    on_step: Progress | None = None,
) -> Tensor:
    """x_t at times[0], float32 `b c f h w`, walked down `times` (see `sample_times`) to latents on the device.

    `sampling.steps` is not looked at: `times` says how many. `draw_noise()` is standard normal, of x's shape.
    """
    device = compute.device

    def denoiser(x_t: Tensor, t: Tensor, cond: Text) -> Tensor:
        with autocast(device, compute.precision, cache=False):
            return bundle.denoiser(x_t, t, cond).float()

    def tell(part: tuple[int, int] | None) -> None:
        if hasattr(bundle.denoiser, "within"):
            bundle.denoiser.within = part  # pyright: ignore[reportArgumentType]

    denoiser = in_windows(denoiser, *latent_window(bundle, sampling, x.shape[2]), tell)

    def guided_by(scale: float) -> Predict:
        return guided(
            denoiser,
            positive,
            negative,
            scale,
            rescale=sampling.guidance_rescale,
            interval=sampling.guidance_interval,
            last_scale=sampling.guidance_end,
        )

    predict = guided_by(sampling.guidance)
    if sampling.guidance_low is not None:
        boundary: Any = getattr(bundle.denoiser, "boundary", None)
        if boundary is None:
            raise UsageError(
                f"guidance_low = {sampling.guidance_low:g}: belongs to models with a network of its own for low noise, "
                "and this one has none; leave it out"
            )
        predict = switched(predict, guided_by(sampling.guidance_low), boundary)
    schedule = bundle.objective.schedule
    told = partial(whole_timestep, schedule=schedule) if sampling.spacing == "timesteps" else None
    denoise = make_denoise(predict, bundle.objective, told)
    network = bundle.denoiser.whole() if isinstance(bundle.denoiser, PretrainedDenoiser) else bundle.denoiser
    with on_device(network, device, compute.offload), generating(bundle.denoiser):
        return SAMPLERS[sampling.sampler](
            denoise, x.to(device), times, schedule, draw_noise=draw_noise, on_step=on_step
        )


@torch.no_grad()
def encode_video(bundle: Bundle, frames: np.ndarray, compute: Compute) -> Tensor:
    """uint8 `f h w c` of a size that fits the codec -> latents `1 c f h w` on the device: the posterior's mean."""
    with _codec_at_work(bundle, compute):
        return bundle.codec.encode(pixels_to_video(torch.from_numpy(frames[None]).to(compute.device))).mean.float()


@torch.no_grad()
def decode_latents(bundle: Bundle, latents: Tensor, compute: Compute) -> np.ndarray:
    """Latents -> uint8 `b f h w c`, whatever the precision in that of the codec (half precision breaks some decoders).

    A codec that decodes every latent frame by itself is given a few at a time.
    """
    pieces: list[np.ndarray] = []
    with _codec_at_work(bundle, compute):
        for part in latents.float().split(latents_at_once(bundle.codec, latents), dim=2):
            pieces += [video_to_pixels(piece).cpu().numpy() for piece in in_pieces(bundle.codec.decode(part))]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)


@contextmanager
def _codec_at_work(bundle: Bundle, compute: Compute) -> Iterator[None]:
    """The codec on the device: as a whole, since its activations are what is large."""
    with on_device(bundle.codec, compute.device, "none" if compute.offload == "none" else "model"):
        yield


def generate_videos(
    bundle: Bundle,
    prompts: Sequence[str],
    seeds: Sequence[int],
    size: Size,
    sampling: SamplingConfig,
    compute: Compute,
    negative_prompt: str = "",
    batch_size: int = 8,
    on_step: Progress | None = None,
    picture: np.ndarray | None = None,
) -> list[np.ndarray]:
    """One uint8 `f h w c` video for each (prompt, seed). UsageError where the size fits neither codec nor patch.

    With a `picture`, uint8 `h w 3`, videos start from it and the prompts are not looked at.
    """
    latent_size = fitting_latent_size(bundle, size, sampling)
    bundle.denoiser.eval()
    total = len(range(0, len(prompts), batch_size)) * sampling.steps
    videos: list[np.ndarray] = []
    for number, start in enumerate(range(0, len(prompts), batch_size)):
        chunk = list(prompts[start : start + batch_size])
        chunk_seeds = seeds[start : start + batch_size]
        if picture is None:
            cond = encode_prompts(bundle, chunk, compute)
            uncond = encode_prompts(bundle, [negative_prompt] * len(chunk), compute)
        else:
            cond, uncond = encode_pictures(bundle, picture, size, chunk_seeds, compute)

        def advance(step: int, _: int, offset: int = number * sampling.steps) -> None:
            if on_step:
                on_step(offset + step, total)

        latents = sample_latents(bundle, cond, uncond, latent_size, chunk_seeds, sampling, compute, advance)
        videos.extend(decode_latents(bundle, latents, compute))
    return videos


def fitting_latent_size(bundle: Bundle, size: Size, sampling: SamplingConfig | None = None) -> Size:
    """Size of the latents of a video. UsageError names the axis that fits neither codec nor patch.

    Where `sampling` has it made in windows, it is their length that has to fit the patch.
    """
    try:
        latent_size = bundle.codec.compression.latent_size(size)
        window = latent_window(bundle, sampling, latent_size.frames)[0] if sampling else latent_size.frames
        bundle.denoiser.check_size(replace(latent_size, frames=window))  # pyright: ignore[reportCallIssue]
    except ValueError as error:
        raise UsageError(f"a video of {size} (frames x height x width): {error}") from None
    return latent_size


def latent_window(bundle: Bundle, sampling: SamplingConfig, count: int) -> tuple[int, int]:
    """Latent frames the denoiser sees at once, of `count`, and how many of them two windows share.

    UsageError where the codec makes no whole latents of a window. Frames that know nothing of one another share none.
    """
    frames, unit = sampling.window_frames, bundle.codec.compression
    if frames == "auto" or frames == 0:
        return count, 0
    try:
        size = unit.latent_size(Size(frames, unit.height, unit.width)).frames
    except ValueError as error:
        raise UsageError(f"window_frames = {frames}: {error}; 0 takes all frames at once") from None
    if size >= count:
        return count, 0
    mixed = getattr(bundle.denoiser, "mixes_frames", True)
    return size, min(size - 1, round(size * sampling.window_overlap)) if mixed else 0
