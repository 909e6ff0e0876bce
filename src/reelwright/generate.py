"""Prompts -> videos."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from reelwright import __version__
from reelwright.diffusion.guidance import Predict, guided, join_texts, make_denoise, switched
from reelwright.diffusion.sampler import SAMPLERS, karras_times, sample_times, stretched_times
from reelwright.diffusion.schedule import Schedule
from reelwright.diffusion.windows import in_windows, repeated_noise, window_starts
from reelwright.loading import LoadedModel
from reelwright.models.codec import pixels_to_video, video_to_pixels
from reelwright.models.decoding import in_pieces, latents_at_once
from reelwright.models.offload import Offload, on_device
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
    """The times of a walk from pure noise to data as the settings have them: falling from 1 to 0, float64."""
    if sampling.spacing == "karras":
        return karras_times(sampling.steps, schedule, *sampling.noise_levels)
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
    denoise = make_denoise(predict, bundle.objective)
    network = bundle.denoiser.whole() if isinstance(bundle.denoiser, PretrainedDenoiser) else bundle.denoiser
    with on_device(network, device, compute.offload), generating(bundle.denoiser):
        return SAMPLERS[sampling.sampler](
            denoise, x.to(device), times, bundle.objective.schedule, draw_noise=draw_noise, on_step=on_step
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
        raise UsageError(f"window_frames = {frames}: {error}") from None
    if size >= count:
        return count, 0
    mixed = getattr(bundle.denoiser, "mixes_frames", True)
    return size, min(size - 1, round(size * sampling.window_overlap)) if mixed else 0


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
    guidance_low: float | None = None
    spacing: Literal["even", "karras"] | None = None
    noise_levels: tuple[float, float] | None = None
    shift_terminal: float | None = None
    guidance_rescale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    window_frames: int | None = None
    window_overlap: float | None = None
    window_noise: Literal["fresh", "repeated"] | None = None
    frames: int | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    image: str | None = None  # a picture's file, for models that start from one

    def size(self, model: LoadedModel) -> Size:
        own = model.recipe.size
        return Size(self.frames or own.frames, self.height or own.height, self.width or own.width)

    def sampling(self, model: LoadedModel) -> SamplingConfig:
        """With `window_frames` settled: what the model was trained on where more is asked for, else 0."""
        given = {name: getattr(self, name) for name in SamplingConfig.model_fields}
        values = model.recipe.sampling.plain() | {k: v for k, v in given.items() if v is not None}
        sampling = SamplingConfig.parse(values, origin="generate")
        if sampling.window_frames == "auto":
            trained = max(size.frames for size in model.recipe.data.sizes)
            window = trained if self.size(model).frames > trained else 0
            sampling = sampling.model_copy(update={"window_frames": window})
        return sampling

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
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Make and write every video asked for, a recipe in each, and a contact sheet where there are several.

    `out` is a file where one video is asked for (or a name to number from), else a folder of mp4s or what `suffix`
    says. One video at a time, so that a seed gives the same frames whatever else is asked for beside it. UsageError
    where a file that is there would be replaced without `overwrite`; in a folder names are numbered on.
    """
    size, sampling = request.size(model), request.sampling(model)
    fps = request.fps or model.recipe.data.fps
    jobs = [(prompt, request.seed + n) for prompt in request.prompts for n in range(request.num_videos)]
    if suffix and out.suffix and not out.is_dir() and out.suffix != f".{suffix}":
        raise UsageError(f"--format {suffix} contradicts --out {out}; leave one of them out")
    latent_size = fitting_latent_size(model.bundle, size, sampling)
    picture = load_picture(model, request)
    paths = output_paths(out, suffix or "mp4", jobs)
    check_target(paths[0], fps)
    sheet = _sheet_path(out, paths) if len(paths) > 1 else None
    refuse_existing([*paths, *([sheet] if sheet else [])], overwrite)
    if told := told_of_windows(model, sampling, size, latent_size):
        say(told)
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
    if sheet is not None:
        labels = [f"{prompt} (seed {seed})" for prompt, seed in jobs]
        contact_sheet(videos, labels, sheet)
        paths = [*paths, sheet]
    return paths


def told_of_windows(model: LoadedModel, sampling: SamplingConfig, size: Size, latent_size: Size) -> str:
    """What is done with a video that does not go through the model at once, in a line; '' for any other."""
    window, overlap = latent_window(model.bundle, sampling, latent_size.frames)
    if window == latent_size.frames:
        return ""
    count = len(window_starts(latent_size.frames, window, overlap))
    how = f"blended over {overlap} of its {window} latent frames" if overlap else "with no frame in common"
    return (
        f"{size.frames} frames go through the model in {count} windows of {sampling.window_frames}, each {how}, at "
        "every step; --window 0 takes them all at once"
    )


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


def refuse_existing(paths: Sequence[Path], overwrite: bool) -> None:
    """UsageError where a result would take the place of a file that is there, unless that is wanted."""
    there = [] if overwrite else [path for path in paths if path.exists()]
    if there:
        more = f" and {len(there) - 1} more of these files" if len(there) > 1 else ""
        raise UsageError(f"{there[0]}{more}: there already; name another place, or give --overwrite to replace it")


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


def _sheet_path(out: Path, paths: Sequence[Path]) -> Path:
    """Where the contact sheet of several videos goes."""
    if out.suffix and not out.is_dir():
        return out.with_name(f"{out.stem}-sheet.png")
    first, last = (path.name.partition("-")[0] for path in (paths[0], paths[-1]))  # their numbers
    return paths[0].with_name(f"{first}-{last}-sheet.png")
