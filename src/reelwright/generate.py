"""Prompts -> videos."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from reelwright import __version__
from reelwright.diffusion.guidance import guided, join_texts, make_denoise
from reelwright.diffusion.sampler import SAMPLERS, karras_times, sample_times
from reelwright.loading import LoadedModel
from reelwright.models.codec import pixels_to_video, video_to_pixels
from reelwright.pretrained.base import PretrainedDenoiser, generating
from reelwright.randomness import keyed_generator, keyed_normal
from reelwright.recipe import SamplingConfig
from reelwright.training.config import Precision
from reelwright.training.devices import autocast, resolve_device, resolve_precision
from reelwright.types import Bundle, Size, Text, UsageError
from reelwright.video.sheet import contact_sheet
from reelwright.video.write import FORMATS, MAX_GIF_FPS, write_video

Progress = Callable[[int, int], None]

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP")
MIN_PICTURE_SIDE, MAX_PICTURE_SIDE = 16, 8192  # below, there is nothing to see; above, a file may be a bomb


@dataclass(frozen=True)
class Compute:
    """Where generation runs. `offload` keeps on the device only the part at work."""

    device: torch.device
    precision: Precision = "fp32"
    offload: bool = False

    @classmethod
    def resolve(cls, device: str, precision: str, offload: bool) -> Compute:
        """From the command line's words. UsageError where they are unknown or not to be had here."""
        if precision not in get_args(Precision):
            raise UsageError(f"--precision {precision}: not one of {', '.join(get_args(Precision))}")
        where = resolve_device(device)
        return cls(where, resolve_precision(cast(Precision, precision), where), offload)


def encode_prompts(bundle: Bundle, prompts: Sequence[str], compute: Compute) -> Text:
    """Captions -> embeddings `b l d` on the device."""
    encoder = bundle.text
    _place(encoder, compute.device)
    with torch.no_grad(), autocast(compute.device, compute.precision):
        tokens = encoder.tokenize(list(prompts)).to(compute.device)
        embeddings = encoder(tokens)
    if compute.offload:
        _place(encoder, torch.device("cpu"))
    return embeddings


def encode_pictures(
    bundle: Bundle, picture: np.ndarray, size: Size, seeds: Sequence[int], compute: Compute
) -> tuple[Text, Text]:
    """A picture uint8 `h w 3` as (cond, uncond) of one video a seed, whose noise on the picture is its own."""
    denoiser = cast(PretrainedDenoiser, bundle.denoiser)
    for part in (bundle.text, bundle.codec):
        _place(part, compute.device)
    pixels = torch.from_numpy(picture.copy()).to(compute.device)
    noises = [keyed_normal((3, size.height, size.width), seed, "picture") for seed in seeds]
    pairs = [denoiser.condition_on(pixels, bundle.codec, bundle.text, size, noise) for noise in noises]
    if compute.offload:
        for part in (bundle.text, bundle.codec):
            _place(part, torch.device("cpu"))
    conds, unconds = zip(*pairs, strict=True)
    return join_texts(conds), join_texts(unconds)


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
    noise = torch.stack([keyed_normal(shape, seed, "latents") for seed in seeds])
    generators = [keyed_generator(seed, "sampler") for seed in seeds]

    def draw_noise() -> Tensor:
        return torch.stack([torch.randn(shape, generator=g) for g in generators])

    schedule = bundle.objective.schedule
    if sampling.spacing == "karras":
        times = karras_times(sampling.steps, schedule, *sampling.noise_levels)
    else:
        times = sample_times(sampling.steps, grid=schedule.grid)
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
        with autocast(device, compute.precision):
            return bundle.denoiser(x_t, t, cond).float()

    _place(bundle.denoiser, device)
    predict = guided(
        denoiser,
        positive,
        negative,
        sampling.guidance,
        rescale=sampling.guidance_rescale,
        interval=sampling.guidance_interval,
        last_scale=sampling.guidance_end,
    )
    denoise = make_denoise(predict, bundle.objective)
    with generating(bundle.denoiser):
        latents = SAMPLERS[sampling.sampler](
            denoise, x.to(device), times, bundle.objective.schedule, draw_noise=draw_noise, on_step=on_step
        )
    if compute.offload:
        _place(bundle.denoiser, torch.device("cpu"))
    return latents


@torch.no_grad()
def encode_video(bundle: Bundle, frames: np.ndarray, compute: Compute) -> Tensor:
    """uint8 `f h w c` of a size that fits the codec -> latents `1 c f h w` on the device: the posterior's mean."""
    _place(bundle.codec, compute.device)
    latents = bundle.codec.encode(pixels_to_video(torch.from_numpy(frames[None]).to(compute.device))).mean.float()
    if compute.offload:
        _place(bundle.codec, torch.device("cpu"))
    return latents


@torch.no_grad()
def decode_latents(bundle: Bundle, latents: Tensor, compute: Compute) -> np.ndarray:
    """Latents -> uint8 `b f h w c`, in float32 whatever the precision (half precision breaks some decoders)."""
    _place(bundle.codec, compute.device)
    pixels = video_to_pixels(bundle.codec.decode(latents.float())).cpu().numpy()
    if compute.offload:
        _place(bundle.codec, torch.device("cpu"))
    return pixels


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
    latent_size = fitting_latent_size(bundle, size)
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


def fitting_latent_size(bundle: Bundle, size: Size) -> Size:
    """Size of the latents of a video. UsageError names the axis that fits neither codec nor patch."""
    try:
        latent_size = bundle.codec.compression.latent_size(size)
        bundle.denoiser.check_size(latent_size)  # pyright: ignore[reportCallIssue]
    except ValueError as error:
        raise UsageError(f"a video of {size} (frames x height x width): {error}") from None
    return latent_size


@dataclass(frozen=True)
class Request:
    """What `reelwright generate` was asked for; None means 'as the run says'."""

    prompts: tuple[str, ...]
    num_videos: int = 1
    seed: int = 0
    negative_prompt: str = ""
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_end: float | None = None
    spacing: Literal["even", "karras"] | None = None
    noise_levels: tuple[float, float] | None = None
    guidance_rescale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    frames: int | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    image: str | None = None  # a picture's file, for models that start from one

    def size(self, model: LoadedModel) -> Size:
        own = model.recipe.size
        return Size(self.frames or own.frames, self.height or own.height, self.width or own.width)

    def sampling(self, model: LoadedModel) -> SamplingConfig:
        given = {name: getattr(self, name) for name in SamplingConfig.model_fields}
        values = model.recipe.sampling.plain() | {k: v for k, v in given.items() if v is not None}
        return SamplingConfig.parse(values, origin="generate")

    @classmethod
    def from_recipe(cls, recipe: dict[str, Any], path: Path) -> Request:
        """The request that made a clip, from the recipe in its metadata. UsageError where another command made it."""
        if "command" in recipe:
            raise UsageError(
                f"{path}: not generated from a prompt alone, but made of {recipe.get('input')} by `reelwright "
                f"{recipe['command']}` (strength {recipe.get('strength')}, seed {recipe.get('seed')}); its recipe "
                "holds every setting: run that command again on the same input"
            )
        try:
            return cls(
                prompts=(recipe["prompt"],),
                **{name: recipe[name] for name in cls.__dataclass_fields__ if name in recipe and name != "prompts"},
            )
        except KeyError as error:
            raise UsageError(f"{path}: its recipe has no {error}; it was not made by `reelwright generate`") from None


def run_generate(
    model: LoadedModel,
    request: Request,
    out: Path,
    suffix: str | None,
    compute: Compute,
    on_step: Progress | None = None,
) -> list[Path]:
    """Make and write every video asked for, a recipe in each, and a contact sheet where there are several.

    `out` is a file where one video is asked for (or a name to number from), else a folder of mp4s or what `suffix`
    says. One video at a time, so that a seed gives the same frames whatever else is asked for beside it.
    """
    size, sampling = request.size(model), request.sampling(model)
    fps = request.fps or model.recipe.data.fps
    jobs = [(prompt, request.seed + n) for prompt in request.prompts for n in range(request.num_videos)]
    if suffix and out.suffix and not out.is_dir() and out.suffix != f".{suffix}":
        raise UsageError(f"--format {suffix} contradicts --out {out}; leave one of them out")
    fitting_latent_size(model.bundle, size)
    picture = load_picture(model, request)
    paths = output_paths(out, suffix or "mp4", jobs)
    check_target(paths[0], fps)
    videos: list[np.ndarray] = []
    for number, ((prompt, seed), path) in enumerate(zip(jobs, paths, strict=True)):

        def advance(done: int, steps: int, before: int = number) -> None:
            if on_step:
                on_step(before * steps + done, len(jobs) * steps)

        negative = request.negative_prompt
        videos += generate_videos(
            model.bundle, [prompt], [seed], size, sampling, compute, negative, on_step=advance, picture=picture
        )
        one = replace(request, seed=seed, num_videos=1, prompts=(prompt,))
        write_video(path, videos[-1], fps, clip_recipe(model, one, size, sampling, fps, compute))
    if len(paths) > 1:
        first, last = paths[0].name[:4], paths[-1].name[:4]  # their numbers, in a folder
        sheet = paths[0].with_name(f"{first}-{last}-sheet.png" if out.is_dir() else f"{out.stem}-sheet.png")
        labels = [f"{prompt} (seed {seed})" for prompt, seed in jobs]
        contact_sheet(videos, labels, sheet)
        paths = [*paths, sheet]
    return paths


def load_picture(model: LoadedModel, request: Request) -> np.ndarray | None:
    """The picture a request starts from, uint8 `h w 3`; None for models that make videos from text.

    UsageError where the model wants one and the request has none, or the other way round, or it cannot be read.
    """
    takes = getattr(model.bundle.denoiser, "takes_image", False)
    if request.image is None:
        if takes:
            raise UsageError("this model makes videos from a picture: give --image PICTURE in place of --prompt")
        return None
    if not takes:
        raise UsageError(f"--image {request.image}: this model makes videos from text alone; leave --image out")
    if any(request.prompts) or request.negative_prompt:
        raise UsageError(f"--image {request.image}: this model sees a picture and no text; leave --prompt out")
    from PIL import Image, ImageOps

    try:
        with Image.open(request.image, formats=PICTURE_FORMATS) as image:
            if max(image.size) > MAX_PICTURE_SIDE or min(image.size) < MIN_PICTURE_SIDE:
                raise UsageError(
                    f"--image {request.image}: {image.width}x{image.height} pixels; give a picture with sides from "
                    f"{MIN_PICTURE_SIDE} to {MAX_PICTURE_SIDE}"
                )
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(
            f"--image {request.image}: cannot be read as a picture ({error}); give a PNG, JPEG or WebP"
        ) from None


def check_target(path: Path, fps: float) -> None:
    """UsageError where the first file could not be written: told before the sampling, not after it."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: unknown video format '{path.suffix}'; use one of {', '.join(FORMATS)}")
    if path.suffix.lower() == ".gif" and fps > MAX_GIF_FPS:
        raise UsageError(f"--fps {fps:g}: a gif shows at most {MAX_GIF_FPS} frames a second; use mp4 or webm")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {path.parent}: cannot be made a folder ({error.strerror}); name another") from None
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"--out {path.parent}: cannot be written to; name another folder")


def cut_prompts(bundle: Bundle, prompts: Sequence[str]) -> list[str]:
    """A warning for each prompt with more tokens than the text encoder takes."""
    counts = bundle.text.count_tokens(list(prompts))
    return [
        f"the prompt '{prompt}' has {count} tokens, the text encoder takes {bundle.text.length}: its end is not seen"
        for prompt, count in zip(prompts, counts, strict=True)
        if count > bundle.text.length
    ]


def clip_recipe(
    model: LoadedModel, request: Request, size: Size, sampling: SamplingConfig, fps: float, compute: Compute
) -> dict[str, Any]:
    """What a generated file carries: enough for `generate --from` to make it again."""
    return {
        "prompt": request.prompts[0],
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
        **sampling.plain(),
        "frames": size.frames,
        "width": size.width,
        "height": size.height,
        "fps": fps,
        **({} if request.image is None else {"image": request.image}),
        "precision": compute.precision,
        "model": model.origin,
        "model_step": model.step,
        "model_sha256": model.weights_sha256,
        **({"loras": list(model.loras)} if model.loras else {}),
        "versions": {"reelwright": __version__, "torch": torch.__version__},
    }


def output_paths(out: Path, suffix: str, jobs: Sequence[tuple[str, int]]) -> list[Path]:
    """`out` itself for one video named as a file; else `stem-0001.mp4` beside it, or `prompt-seed.mp4` in a folder."""
    if out.suffix and not out.is_dir():
        if len(jobs) == 1:
            return [out]
        return [out.with_name(f"{out.stem}-{n:04d}{out.suffix}") for n in range(1, len(jobs) + 1)]
    paths: list[Path] = []
    taken = [int(m[1]) for path in out.glob("*") if (m := re.match(r"(\d{4,})-", path.name))]
    for number, (prompt, seed) in enumerate(jobs, start=1 + max(taken, default=0)):  # earlier videos stay
        words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:60] or "video"
        paths.append(out / f"{number:04d}-{words}-seed{seed}.{suffix}")
    return paths


def _place(module: Any, device: torch.device) -> None:
    if isinstance(module, torch.nn.Module):
        module.to(device)
