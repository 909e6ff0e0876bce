"""A video -> the same video noised, or noised and denoised again under a prompt: any size and any length.

Strength s is the schedule's time: x_s = alpha(s) x0 + sigma(s) noise, x0 the codec's latents. `noise` decodes
x_s / alpha(s). `refine` walks x_s down to 0 with the sampler's remaining times, as SDEdit does (Meng et al. 2022,
arXiv 2108.01073, algorithm 1).

A long video goes through in windows of the model's own number of frames; a quarter of each, at least one frame block of
the codec, covers the one before. Noise belongs to its place in the video, not to a window, so two windows begin from
the same x_s where they overlap; what they make of it is cross-faded linearly there. (Half instead of a quarter was no
smoother, but twice as many frames were a mix of two pictures.) No more than a window of pictures is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reelwright import __version__
from reelwright.data.consecutive import Container, describe, portions, read_portion
from reelwright.data.decode import BadVideo, probe
from reelwright.data.sandbox import Decoders
from reelwright.diffusion.sampler import sample_times
from reelwright.diffusion.schedule import Schedule
from reelwright.durable import sha256_of
from reelwright.generate import (
    Compute,
    Progress,
    Request,
    check_target,
    clip_recipe,
    decode_latents,
    denoise_latents,
    encode_prompts,
    encode_video,
    fitting_latent_size,
    refuse_existing,
)
from reelwright.loading import LoadedModel
from reelwright.randomness import keyed_generator, keyed_normal
from reelwright.types import Bundle, Size, UsageError, UserError
from reelwright.video.stream import even_rate, true_size
from reelwright.video.windows import Pictures, Windows, through_windows
from reelwright.video.write import STREAMED_FORMATS, streamed_video

Say = Callable[[str], None]

MAX_WINDOW_PIXELS = 2**27  # frames x height x width: 16 frames of 4K
SLOW_TO_READ_BYTES = 2**25  # of a file: a line says that it is being read
FAR = 1.5  # times the size or rate a model was trained at


@dataclass(frozen=True, eq=False)
class Source:
    """A video to work on, as decoding all of it showed. Its frames come from the child processes of `decoders`."""

    path: Path
    decoders: Decoders
    size: Size  # as shown: upright, square pixels
    seconds: NDArray[np.float64]  # when each frame is shown, the first at 0
    rate: Fraction  # frames a second; the mean where the video is not `steady`
    steady: bool  # whether frames come at an even rate
    silent: bool  # whether there is no sound
    sha256: str
    decoded: Size  # before the padding noted in our own files is taken off
    rotation: int  # degrees clockwise from the stored picture to the shown one
    mirrored: bool

    def pictures(self) -> Iterator[Pictures]:
        """Frames in order, uint8 `h w c`; two portions of them in memory at a time, one of them being decoded.

        UserError where the file can no longer be read.
        """
        waiting: list[Future[NDArray[np.uint8]]] = []

        def take() -> Iterator[Pictures]:
            for picture in waiting.pop(0).result():
                yield picture[: self.size.height, : self.size.width]

        try:
            for first, size in portions(self.decoded):
                asked = self.decoders.submit(read_portion, self.path, size, first, self.rotation, self.mirrored)
                waiting.append(asked)
                if len(waiting) > 1:
                    yield from take()
            yield from take()
        except BadVideo as error:
            raise UserError(f"{self.path}: cannot be decoded any longer ({error}); was it changed?") from None


def open_source(path: Path, decoders: Decoders, say: Say) -> Source:
    """Decode a file once from end to end. UserError where it is damaged or holds no moving picture."""
    if not path.is_file():
        raise UsageError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; give one video file")
    if path.stat().st_size > SLOW_TO_READ_BYTES:
        say(f"reading {path}")
    try:
        info = decoders.call(probe, path)
        container = Container.from_text(decoders.call(describe, path))
    except BadVideo as reason:
        raise UserError(f"{path}: {reason}; re-encode it or use another video") from None
    if info.num_frames < 2:
        raise UserError(f"{path}: holds a single frame; a video has at least 2")
    height, width = true_size(info.height, info.width, container.description)
    seconds = info.timestamps - info.first_seconds
    rate, steady = even_rate(seconds, container.rate)
    return Source(
        path, decoders, Size(info.num_frames, height, width), seconds, rate, steady, not container.has_sound,
        sha256_of(path), Size(info.num_frames, info.height, info.width), info.rotation, info.mirrored,
    )  # fmt: skip


def plan_windows(bundle: Bundle, trained: Size, video: Size) -> Windows:
    """Windows of `trained.frames` frames, or a single one where the video is not longer than that.

    Starts are multiples of the codec's frame block, so that a frame has the same latent in every window.
    UsageError where a window has more than MAX_WINDOW_PIXELS pixels.
    """

    def fitting(axis: str, extent: int) -> int:
        """The least extent from this one on that fits codec and patch."""
        for padded in range(extent, extent + 4096):
            try:
                fitting_latent_size(bundle, replace(trained, **{axis: padded}))
            except UsageError:
                continue
            return padded
        raise UsageError(f"{axis} = {extent}: no extent near it fits the codec and the model")

    frames = trained.frames if video.frames > trained.frames else fitting("frames", video.frames)
    size = Size(frames, fitting("height", video.height), fitting("width", video.width))
    if size.frames * size.height * size.width > MAX_WINDOW_PIXELS:
        raise UsageError(
            f"a video of {video.width}x{video.height}: {frames} frames of that size are more than {MAX_WINDOW_PIXELS} "
            "pixels, which go through the model at once; make it smaller first"
        )
    step = min(frames, bundle.codec.compression.frames)  # less than a block only where a causal codec takes one frame
    last = max(0, -(-(video.frames - frames) // step) * step)
    overlap = max(step, frames // 4 // step * step) if frames > step else 0
    stride = max(step, (frames - overlap) // step * step)  # a causal window is a frame longer than its blocks
    return Windows(size, (*range(0, last, stride), last), video.frames)


@dataclass(frozen=True)
class Outcome:
    """What was written."""

    path: Path
    size: Size
    fps: float
    windows: int
    steps: int  # of the sampler, in each window


def run_noise(
    model: LoadedModel,
    source: Path,
    out: Path,
    strength: float,
    seed: int,
    compute: Compute,
    on_step: Progress | None = None,
    say: Say = lambda _: None,
    overwrite: bool = False,
) -> Outcome:
    """Write the video whose latents are x_s / alpha(s): what `run_refine` of the same strength and seed begins with.

    `on_step(done, total)` counts windows, `say` takes one-line messages. UsageError where nothing was left to show, or
    a file that is there would be replaced without `overwrite`.
    """
    with _opened_job(model, source, out, strength, say, overwrite) as job:
        return _noised(model, job, strength, seed, compute, on_step)


def _noised(
    model: LoadedModel, job: _Job, strength: float, seed: int, compute: Compute, on_step: Progress | None
) -> Outcome:
    t = start_time(model.bundle.objective.schedule, strength)
    alpha = float(model.bundle.objective.schedule.alpha(t))
    if alpha == 0:
        raise UsageError(f"--strength {strength:g}: at pure noise nothing of the video is left; use less than 1")
    done = 0

    def change(frames: Pictures, first: int) -> Pictures:
        nonlocal done
        latents = encode_video(model.bundle, frames, compute)
        noisy = model.bundle.objective.corrupt(latents, _Noise(model.bundle, latents, seed, first).start(), t)
        result = decode_latents(model.bundle, noisy / alpha, compute)[0]
        done += 1
        if on_step:
            on_step(done, job.windows.count)
        return result

    recipe = {
        "command": "noise",
        **job.facts,
        "seed": seed,
        "frames": job.source.size.frames,
        "width": job.source.size.width,
        "height": job.source.size.height,
        "fps": float(job.source.rate),
        "model": model.origin,
        "model_step": model.step,
        "model_sha256": model.weights_sha256,
        "versions": {"reelwright": __version__, "torch": torch.__version__},
    }
    return job.write(recipe, change, 0)


def run_refine(
    model: LoadedModel,
    source: Path,
    out: Path,
    request: Request,
    strength: float,
    already_noisy: bool,
    compute: Compute,
    on_step: Progress | None = None,
    say: Say = lambda _: None,
    overwrite: bool = False,
) -> Outcome:
    """Noise a video to `strength` and denoise it again; an `already_noisy` one, made by `run_noise`, is only denoised.

    Of `request` the first prompt, the negative prompt, the seed and the sampling count. Its steps are those of a whole
    walk from pure noise, of which the share `strength` (at least one) is taken. Strength 0 is the codec's round trip.
    `on_step(done, total)` counts sampling steps over all windows, `say` takes one-line messages. UsageError where a
    file that is there would be replaced without `overwrite`.
    """
    with _opened_job(model, source, out, strength, say, overwrite) as job:
        if warning := far_from_training(model, job.source):
            say(warning)
        return _refined(model, job, request, strength, already_noisy, compute, on_step)


def _refined(
    model: LoadedModel,
    job: _Job,
    request: Request,
    strength: float,
    already_noisy: bool,
    compute: Compute,
    on_step: Progress | None,
) -> Outcome:
    bundle, schedule = model.bundle, model.bundle.objective.schedule
    sampling = request.sampling(model)
    t = start_time(schedule, strength)
    if already_noisy and float(schedule.alpha(t)) == 0:
        raise UsageError(f"--already-noisy --strength {strength:g}: nothing of a video is left there; use less than 1")
    times = remaining_times(schedule, sampling.steps, t)
    bundle.denoiser.eval()
    positive = encode_prompts(bundle, request.prompts[:1], compute)
    negative = encode_prompts(bundle, [request.negative_prompt], compute)
    steps, done = len(times) - 1, 0

    def change(frames: Pictures, first: int) -> Pictures:
        nonlocal done
        latents = encode_video(bundle, frames, compute)

        def advance(step: int, _: int) -> None:
            if on_step:
                on_step(done + step, job.windows.count * steps)

        if steps:
            noise = _Noise(bundle, latents, request.seed, first)
            x = bundle.objective.corrupt(latents, torch.zeros_like(latents) if already_noisy else noise.start(), t)
            latents = denoise_latents(bundle, x, times, positive, negative, sampling, compute, noise.draw, advance)
        done += steps
        return decode_latents(bundle, latents, compute)[0]

    recipe = {
        "command": "refine",
        **job.facts,
        "already_noisy": already_noisy,
        "steps_taken": steps,
        **clip_recipe(model, request, job.source.size, sampling, float(job.source.rate), compute),
    }
    return job.write(recipe, change, steps)


def start_time(schedule: Schedule, strength: float) -> Tensor:
    """The time of a strength, `1` float64; on a table the nearest of its own, as no other was trained at."""
    t = strength
    if schedule.grid is not None and strength > 0:
        t = max(1, round(strength * schedule.grid)) / schedule.grid
    return torch.tensor([t], dtype=torch.float64)


def remaining_times(schedule: Schedule, steps: int, start: Tensor) -> Tensor:
    """Times from `start` to 0 in steps as long as those of a walk of `steps` from pure noise; just [0] from 0."""
    t = float(start)
    if t == 0:
        return torch.zeros(1, dtype=torch.float64)
    count = max(1, round(steps * t))
    if schedule.grid is not None:
        count = min(count, round(t * schedule.grid))
    return sample_times(count, start=t, grid=schedule.grid)


def far_from_training(model: LoadedModel, source: Source) -> str | None:
    """A warning where a video is of quite another size or rate than what the model was trained on."""
    own, fps = model.recipe.size, model.recipe.data.fps
    pairs = ((source.size.width, own.width), (source.size.height, own.height), (float(source.rate), fps))
    if all(1 / FAR <= there / here <= FAR for there, here in pairs):
        return None
    return (
        f"{source.path}: {source.size.width}x{source.size.height} at {float(source.rate):.5g} fps, but the model was "
        f"trained at {own.width}x{own.height}, {fps:g} fps: it works there too, less well the further away"
    )


class _Noise:
    """Standard normal noise for the latents `1 c f h w` of a window, keyed by seed and place in the video.

    The place of a latent is the window's first frame and so many of the codec's blocks on, in a causal codec as well:
    there it is the last frame it stands for. Windows begin at whole blocks, so they agree on it.
    """

    def __init__(self, bundle: Bundle, latents: Tensor, seed: int, first: int) -> None:
        _, channels, count, height, width = latents.shape
        block = bundle.codec.compression.frames
        self._shape = (channels, height, width)
        self._places = range(first, first + count * block, block)
        self._seed, self._like = seed, latents
        self._generators = [keyed_generator(seed, "refine sampler", place) for place in self._places]

    def start(self) -> Tensor:
        drawn = [keyed_normal(self._shape, self._seed, "refine", place) for place in self._places]
        return torch.stack(drawn, dim=1)[None].to(self._like)

    def draw(self) -> Tensor:
        """For samplers that add noise: other numbers at every call."""
        drawn = [torch.randn(self._shape, generator=generator) for generator in self._generators]
        return torch.stack(drawn, dim=1)[None]


@dataclass(frozen=True)
class _Job:
    """What both commands share: a checked source, the place of the result, the windows."""

    source: Source
    out: Path
    windows: Windows
    facts: dict[str, Any]

    def write(self, recipe: dict[str, Any], change: Callable[[Pictures, int], Pictures], steps: int) -> Outcome:
        source = self.source
        _, height, width = source.size.tuple
        with (
            _memory_told(self.windows.size, recipe["command"]),
            streamed_video(self.out, height, width, source.rate, recipe, source.steady) as add,
        ):
            changed = through_windows(source.pictures(), self.windows, change)
            for picture, seconds in zip(changed, source.seconds.tolist(), strict=True):
                add(picture, seconds)
        return Outcome(self.out, source.size, float(source.rate), self.windows.count, steps)


@contextmanager
def _opened_job(
    model: LoadedModel, path: Path, out: Path, strength: float, say: Say, overwrite: bool
) -> Iterator[_Job]:
    """UsageError or UserError for whatever can be known before the work begins. The file is read within the context."""
    if not 0 <= strength <= 1:
        raise UsageError(f"--strength {strength:g}: must lie in [0, 1]; 0 changes nothing, 1 is pure noise")
    if out.suffix.lower() not in STREAMED_FORMATS:
        raise UsageError(f"{out}: end the name of the result in {' or '.join(STREAMED_FORMATS)}")
    if out.exists() and path.exists() and out.samefile(path):
        raise UsageError(f"{out}: is the input itself; give the result another name")
    if out.is_dir():
        raise UsageError(f"{out}: is a folder; name a file in it")
    refuse_existing([out], overwrite)
    with Decoders(1, model.recipe.data.limits) as decoders:
        source = open_source(path, decoders, say)
        check_target(out, float(source.rate))
        windows = plan_windows(model.bundle, model.recipe.size, source.size)
        frames, height, width = source.size.tuple
        several = f": {windows.count} windows of {windows.size.frames}" if windows.count > 1 else ""
        say(f"{path}: {frames} frames of {width}x{height} at {float(source.rate):.5g} fps{several}")
        if not source.silent:
            say(f"{path}: its sound is left out; the result is silent")
        yield _Job(source, out, windows, {"input": str(path), "input_sha256": source.sha256, "strength": strength})


@contextmanager
def _memory_told(size: Size, command: str) -> Iterator[None]:
    """UserError instead of the ways in which torch and numpy say that memory ran out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            options = "--offload model" if command == "noise" else "--offload model or --precision bf16"
            raise UserError(
                f"not enough memory for windows of {size} (frames x height x width); make the video smaller, or try "
                f"{options}"
            ) from None
        raise
